// What the libraries' functions are asked; kernels/native.py and native_training.py have the same
// fields in the same order.

#pragma once

// Enlarge one image, or several one behind the other, each by one thread with maps of its own.
struct InferenceCall {
    const float* weights;  // lkdn_weights() floats, at a multiple of 64 bytes
    const float* lr;       // (IMAGE, height+2, width+2), zeros around it
    float* sr;             // (IMAGE, SCALE*height, SCALE*width)
    float* maps;           // 3 * height * width * lkdn_pitch() floats, so many for each such thread
    float* scratch;        // threads * lkdn_scratch()
    int height, width, threads;
};

// The loss of each patch, summed over its values and times `share`, and the gradient of their sum.
// Pointers to floats are at multiples of 64 bytes.
struct GradientCall {
    const float* parameters;   // flat, see for_each()
    const unsigned char* lr;   // (batch, height, width, IMAGE)
    const unsigned char* hr;   // (batch, SCALE*height, SCALE*width, IMAGE)
    float* weights;            // lkdn_training_weights() floats
    float* memory;             // threads * lkdn_memory(height, width), zeros in the beginning
    float* gradients;          // batch * lkdn_gradients()
    double* losses;            // (batch)
    float* gradient;           // like parameters
    int batch, height, width, loss, threads;
    float share, eps;          // eps: of the norms
};
