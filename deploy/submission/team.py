"""Who sends the submission: the team of team.toml, and the email that goes to the organisers."""

import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from utils.command import UserError
from utils.schema import Kind, misfit

TEAM = "deploy/submission/team.toml"
TEXT = re.compile(r"(?s:.*\S.*)")
# What the organisers ask for of a team and team.toml may leave empty, by its field there.
ASKED = {
    "leader": "leader's name",
    "email": "leader's email",
    "address": "leader's address",
    "phone": "leader's phone number",
    "affiliation": "affiliation",
    "sponsors": "affiliation with sponsors of NTIRE 2023",
    "users": "user names on CodaLab",
    "entries": "entries on CodaLab",
    "best": "best score",
    "code": "command that downloads the code",
    "results": "command that downloads the results",
    "comments": "comments on the challenge",
}


@dataclass(frozen=True)
class Team:
    """The fields of team.toml, where each is explained; those in ASKED and `website` may be
    empty."""

    title: str
    name: str
    id: int
    leader: str
    email: str
    address: str
    phone: str
    members: tuple[str, ...]
    website: str
    affiliation: str
    sponsors: str
    users: str
    entries: str
    best: str
    code: str
    results: str
    comments: str
    organisers: tuple[str, ...]

    @property
    def missing(self) -> list[str]:
        """What the organisers ask for and is not known."""
        return [label for field, label in ASKED.items() if not getattr(self, field)]

    @property
    def others(self) -> list[str]:
        """The members but the leader."""
        return [name for name in self.members if name != self.leader]

    @property
    def subject(self) -> str:
        """The title of the email."""
        return f"NTIRE 2023 Efficient SR Challenge - {self.name} - {self.id:02}"


def read_team(path: Path) -> Team:
    """The team of a team.toml.

    Raises:
        UserError: it is missing, no TOML, or a field is missing, unknown or wrong.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"expected the team in {path}, got {error}") from error
    names = [field.name for field in fields(Team)]
    if misnamed := sorted(set(content) ^ set(names)):
        raise UserError(
            f"expected the fields {', '.join(names)} in {path}, got "
            f"{', '.join(content) or 'none'}: see to {', '.join(misnamed)}"
        )
    kinds = {field.name: _kind(field.name, field.type) for field in fields(Team)}
    wrong = [
        f"{name}, {words}" for name, (kind, words) in kinds.items() if misfit(content[name], kind)
    ]
    if content["code"] and content["code"] == content["results"]:
        wrong.append("code and results, two commands of different addresses")
    if wrong:
        raise UserError(f"expected in {path}: {'; '.join(wrong)}; got another value")
    lists = {name: tuple(value) for name, value in content.items() if isinstance(value, list)}
    return Team(**{**content, **lists})


def _kind(name: str, of: Any) -> tuple[Kind, str]:
    """What the value of a field has to be, as a kind and in words."""
    if of is int:
        return range(100), "a number of 0 to 99"
    if of is not str:
        return [TEXT, ...], "a list of names"
    if name == "email":
        return re.compile(r"([^@\s]+@[^@\s]+\.[^@\s]+)?"), "an address or empty"
    if name in ASKED or name == "website":
        return str, "a text or empty"
    return TEXT, "a text"


def email(team: Team) -> str:
    """The email of the final submission; what is not known is asked for in brackets."""

    def of(field: str) -> str:
        return getattr(team, field) or f"[{ASKED[field]}: {field} in {TEAM}]"

    lines = [
        f"To: {', '.join(team.organisers)}",
        f"Cc: {', '.join(team.others)}",
        f"Title: {team.subject}",
        "",
        f"a) Team name: {team.name}",
        f"b) Team leader: {of('leader')}, {of('email')}",
        f"c) Rest of the team: {', '.join(team.others)}",
        f"d) User names on the NTIRE 2023 CodaLab competitions: {of('users')}",
        f"e) Code, trained weights and factsheet: {of('code')}",
        f"f) Results: {of('results')}",
    ]
    return "\n".join(lines) + "\n"
