"""deploy/submission: the team, the email, and the factsheet in LaTeX and as a PDF."""

import copy
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.submission import typeset
from deploy.submission.__main__ import main, read_entry
from deploy.submission.entry import Entry
from deploy.submission.factsheet import latex, sources
from deploy.submission.team import email, read_team
from utils.files import ROOT
from utils.record import read_runs

FILE = ROOT / "deploy" / "submission" / "team.toml"
TEAM = FILE.read_text()

needs_tex = pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")


@pytest.fixture(scope="module")
def entry() -> Entry:
    return read_entry(ROOT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "team.toml"),
        ("name = ", "team.toml"),
        (TEAM.replace('email = ""', ""), "see to email"),
        (TEAM + "\ncaptain = 'A'\n", "see to captain"),
        (TEAM.replace("id = 23", "id = true"), "id, a number of 0 to 99"),
        (TEAM.replace("id = 23", "id = 230"), "id, a number of 0 to 99"),
        (TEAM.replace('"Set5 Baby"', '" "'), "name, a text"),
        (TEAM.replace('"Linze Li"', "7"), "members, a list of names"),
        (TEAM.replace('email = ""', 'email = "nobody"'), "email, an address or empty"),
        (re.sub("(code|results) = .*", r"\1 = 'wget'", TEAM), "commands of different addresses"),
    ],
)
def test_a_wrong_team_is_one_sentence_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture, text: str | None, message: str
) -> None:
    (tmp_path / "deploy" / "submission").mkdir(parents=True)
    if text is not None:
        (tmp_path / "deploy" / "submission" / "team.toml").write_text(text)
    assert main(["--root", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_email_asks_for_what_is_not_known_and_gives_what_is() -> None:
    team = read_team(FILE)
    assert email(team).count("deploy/submission/team.toml]") == len(
        {"leader", "email", "users", "code", "results"} & set(empty_fields(TEAM))
    )
    team = replace(
        team,
        organisers=("O <o@p.org>", "Q"),
        members=("Ann", "Bo", "Cy"),
        leader="Bo",
        email="bo@x.org",
        users="ann, bo",
        code="git clone https://x.org/c",
        results="wget https://x.org/r.zip",
    )
    assert (
        email(team)
        == """\
To: O <o@p.org>, Q
Cc: Ann, Cy
Title: NTIRE 2023 Efficient SR Challenge - Set5 Baby - 23

a) Team name: Set5 Baby
b) Team leader: Bo, bo@x.org
c) Rest of the team: Ann, Cy
d) User names on the NTIRE 2023 CodaLab competitions: ann, bo
e) Code, trained weights and factsheet: git clone https://x.org/c
f) Results: wget https://x.org/r.zip
"""
    )


def empty_fields(text: str) -> list[str]:
    return re.findall(r'^(\w+) = ""', text, re.M)


def balanced(source: str) -> bool:
    """Whether braces, environments and dollars of LaTeX go in pairs."""
    bare = re.sub(r"\\.", "", re.sub(r"(?<!\\)%.*", "", source))
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            return False
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", source):
        if kind == "begin":
            opened.append(name)
        elif not opened or opened.pop() != name:
            return False
    return depth == 0 and not opened and bare.count("$") % 2 == 0


def plain(source: str) -> str:
    """The words of LaTeX that escapes, or breaks lines, for no meaning."""
    return " ".join(source.replace("{}", "").replace("\\", "").split())


def test_the_factsheet_is_filled_and_balanced(entry: Entry) -> None:
    source = sources(entry)["factsheet.tex"].decode()
    assert balanced(source) and not balanced(source.replace(r"\end{table}", "", 1))
    assert "@@" not in source and "None" not in source
    sections = re.findall(r"\\section\{(.+?)\}", source)
    assert sections == [
        "Introduction",
        "Email",
        "Code submission",
        "Factsheet information",
        "Other details",
    ]
    for cell in (
        "& Params [M] & Multi-Adds [G] & Set5 & Set14 & B100 & Urban100 & Manga109",
        "LKDN, published (2023) & 0.129 & 8.29 & 32.10 / 0.8938",
        "the team's GPU & 29.01 & 78.49 & 0.129 & 8.29 & 202.70 & 652.41 & 86",
        "the organisers' GPU & 29.01 & 117.33 &",
        "Xiaole Zhao",
        "129,177 parameters, 8.2892 G multiply-adds",
        "that is 7.29 G multiply-adds",
        "29.8% of the parameters of the baseline RFDN, 30.6% of its multiply-adds",
        "Still to be given by the team: leader's name",
        "python train/train.py",
        "CID22",
    ):
        assert cell in plain(source), cell
    drawn = "".join(re.findall(r"coordinates \{(.*?)\}", source))
    scores = [f"{line['val_psnr']:.4f}" for line in entry.training()["validation"]]
    assert re.findall(r"\([\d.]+,([\d.]+)\)", drawn) == scores
    for run in entry.runs():
        assert f"{run['ave_psnr']:.2f}" in source
    for bibitem in re.findall(r"\\bibitem\{(\w+)\}", source):
        assert re.search(rf"\\cite\{{[^}}]*\b{bibitem}\b", source), bibitem


def test_the_teams_training_has_no_word_that_its_factsheet_lacks(entry: Entry) -> None:
    source = sources(entry)["factsheet.tex"].decode()
    table = source.partition(r"\label{team}")[2].partition(r"\end{table}")[0]
    assert "950,000" in table and "480" in table
    assert not re.search("EMA|average|decay|warm|muon|seed", table, re.I)


def test_a_teacher_is_said_where_there_was_one(entry: Entry) -> None:
    for taught, words in ((True, "and so is the teacher"), (False, "without a teacher")):
        training = copy.deepcopy(entry.training())
        for stage in training["stages"]:
            stage["teacher"] = {"sha256": "0" * 64, "records": []} if taught else None
        assert words in plain(latex(entry.team, "23_LKDN", "0" * 64, training, []))


def test_what_was_not_measured_is_said(entry: Entry) -> None:
    team = replace(entry.team, comments="Fair.", leader="Bo Li")
    text = plain(latex(team, "23_LKDN", "0" * 64, {}, read_runs(ROOT / "results/published")))
    assert "these weights & not measured & not measured & not measured" in text
    assert "Leader & Bo Li" in text and "leader's name" not in text and "Fair." in text
    assert "astronaut" not in text


def hostile() -> dict[str, bytes]:
    """A factsheet of a team whose words are full of what LaTeX reads otherwise, and no run."""
    words = r'50 % & #1 {_a_} $x$ ~ ^ \command <b> | "q" @@TEAM@@ -- é'
    texts = {name: words for name, value in vars(read_team(FILE)).items() if isinstance(value, str)}
    team = replace(read_team(FILE), **texts | {"members": (words, words), "email": "a_b%c@d.org"})
    source = latex(team, "23_LKDN", "0" * 64, {}, [], words)
    return {
        "factsheet.tex": source.encode(),
        "architecture.tex": (FILE.parent / "architecture.tex").read_bytes(),
    }


def test_data_are_escaped() -> None:
    source = hostile()["factsheet.tex"].decode()
    assert balanced(source)
    assert r"50 \% \& \#1 \{\_a\_\} \$x\$ \textasciitilde{} \textasciicircum{} " in source
    assert r"\textbackslash{}command \textless{}b\textgreater{} \textbar{}" in source
    assert r"a\_b\%c@d.org" in source and "not measured" in source


@needs_tex
def test_the_sources_compile_alone_and_nothing_is_too_wide(entry: Entry, tmp_path: Path) -> None:
    for name, content in sources(entry).items():
        (tmp_path / name).write_bytes(content)
    for _ in range(2):
        subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "factsheet.tex"],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )
    log = (tmp_path / "factsheet.log").read_text(errors="replace")
    assert not re.findall(r"Overfull.*|.*undefined.*", log)


@needs_tex
def test_a_factsheet_that_tex_does_not_set_is_one_sentence() -> None:
    document = typeset.pdf(hostile())
    assert document and document.startswith(b"%PDF")
    wrong = b"\\documentclass{article}\n\\begin{document}\n\\nothing\n\\end{document}"
    with pytest.raises(typeset.TexError, match="got ! Undefined control sequence"):
        typeset.pdf({"factsheet.tex": wrong})
