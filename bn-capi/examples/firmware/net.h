/* The network's sizes, and its parameters as training left them: what table.c (on the host) and net.c share. */
#ifndef NET_H
#define NET_H
#include <batchnorm.h>
#include <string.h>

enum { BATCH = 2, HEIGHT = 8, WIDTH = 8, CHANNELS = 16, POSITIONS = HEIGHT * WIDTH };

/* Numbers from -1 to below 1, the same everywhere. */
static inline float draw(uint32_t *seed) {
    *seed = *seed * 1664525u + 1013904223u;
    return (float)((int32_t)*seed >> 16) / 32768.0f;
}

/* Stand-ins for trained parameters. */
static inline void trained(float *gamma, float *beta, float *running_mean, float *running_var) {
    uint32_t seed = 7;
    for (int c = 0; c < CHANNELS; c++) {
        gamma[c] = 1.0f + 0.5f * draw(&seed);
        beta[c] = 0.25f * draw(&seed);
        running_mean[c] = 0.5f * draw(&seed);
        running_var[c] = 1.0f + 0.5f * draw(&seed);
    }
}

/* Batch normalization of the network with ReLU, NHWC; all that is not named is 0. */
static inline batchnorm_desc describe(void) {
    batchnorm_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.struct_size = sizeof desc;
    desc.layout = BATCHNORM_NHWC;
    desc.dtype = BATCHNORM_F32;
    desc.activation = BATCHNORM_RELU;
    desc.epsilon = 1e-3;
    desc.batch = BATCH;
    desc.channels = CHANNELS;
    desc.spatial = POSITIONS;
    return desc;
}

#endif
