/*
 * A layer y = BN(x) learns a scale and a shift per channel by gradient descent; then its batch normalization
 * is folded into the dense layer before it.
 *
 *   cc -std=c99 train.c $(pkg-config --cflags --libs batchnorm) -lm -o train
 */
#include <batchnorm.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 256, CHANNELS = 3 };

static void check(batchnorm_status status) {
    if (status != BATCHNORM_OK) {
        fprintf(stderr, "batchnorm: %s\n", batchnorm_status_message(status));
        exit(1);
    }
}

int main(void) {
    static float x[BATCH][CHANNELS], y[BATCH][CHANNELS], dy[BATCH][CHANNELS], applied[BATCH][CHANNELS];
    const float wanted_scale[CHANNELS] = {2.0f, 0.5f, 1.0f}, wanted_shift[CHANNELS] = {-1.0f, 3.0f, 0.0f};
    float gamma[CHANNELS] = {1, 1, 1}, beta[CHANNELS] = {0, 0, 0}, dgamma[CHANNELS], dbeta[CHANNELS];
    float running_mean[CHANNELS] = {0, 0, 0}, running_var[CHANNELS] = {1, 1, 1};
    batchnorm_moments moments[CHANNELS];
    uint64_t batches = 0, workspace[1024];

    /* A batch of 256 rows of 3 features: NHWC with one position. */
    batchnorm_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.struct_size = sizeof desc;
    desc.layout = BATCHNORM_NHWC;
    desc.dtype = BATCHNORM_F32;
    desc.epsilon = 1e-5;
    desc.batch = BATCH;
    desc.channels = CHANNELS;
    desc.spatial = 1;
    desc.workspace = workspace; /* or NULL: then calls allocate it */
    desc.workspace_bytes = sizeof workspace;

    uint32_t seed = 1;
    for (size_t i = 0; i < BATCH; i++) {
        for (size_t c = 0; c < CHANNELS; c++) {
            seed = seed * 1664525u + 1013904223u;
            /* Far from 0 and narrow: nothing is lost. */
            x[i][c] = 1e4f + (float)(seed >> 16) / 65536.0f;
        }
    }

    double loss = 0;
    for (int step = 0; step < 100; step++) {
        check(batchnorm_forward_training(&desc, x, NULL, gamma, beta, y, moments));
        check(batchnorm_running_update(desc.dtype, CHANNELS, moments, BATCHNORM_CUMULATIVE, 0, 0, &batches,
                                       running_mean, running_var, NULL));
        loss = 0;
        for (size_t i = 0; i < BATCH; i++) {
            for (size_t c = 0; c < CHANNELS; c++) {
                double sigma = sqrt(moments[c].m2 / (double)moments[c].count);
                double target = wanted_scale[c] * (x[i][c] - moments[c].mean) / sigma + wanted_shift[c];
                double error = y[i][c] - target;
                loss += error * error / BATCH;
                dy[i][c] = (float)(2 * error / BATCH);
            }
        }
        /* dx is not wanted here. */
        check(batchnorm_backward(&desc, x, NULL, dy, gamma, moments, NULL, NULL, dgamma, dbeta));
        for (size_t c = 0; c < CHANNELS; c++) {
            gamma[c] -= 0.1f * dgamma[c];
            beta[c] -= 0.1f * dbeta[c];
        }
    }
    printf("loss %.1e\n", loss);
    for (size_t c = 0; c < CHANNELS; c++) {
        printf("channel %zu: scale %.3f, shift %.3f\n", c, gamma[c], beta[c]);
    }

    /* For a controller: a table that may live in flash, and no double. */
    batchnorm_prepared table[CHANNELS];
    check(batchnorm_prepare(&desc, gamma, beta, running_mean, running_var, table));
    check(batchnorm_apply(&desc, x, NULL, table, applied));
    check(batchnorm_forward_inference(&desc, x, NULL, gamma, beta, running_mean, running_var, y));
    printf("prepared and applied: %s\n", memcmp(applied, y, sizeof y) == 0 ? "the same bits" : "DIFFERENT");

    /* Or folded into the layer before it: here one with weights 2 and no bias. */
    float weight[CHANNELS] = {2, 2, 2}, bias[CHANNELS] = {0, 0, 0};
    check(batchnorm_fold_before(table, CHANNELS, 1, weight, bias));
    printf("folded: weights %.3f %.3f %.3f\n", weight[0], weight[1], weight[2]);

    int good = loss < 1e-5 && memcmp(applied, y, sizeof y) == 0;
    for (size_t c = 0; c < CHANNELS; c++) {
        good = good && fabsf(gamma[c] - wanted_scale[c]) < 0.01f && fabsf(beta[c] - wanted_shift[c]) < 0.01f;
    }
    return good ? 0 : 1;
}
