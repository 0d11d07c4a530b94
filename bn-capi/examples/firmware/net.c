/*
 * A step of a small network: a depthwise convolution of 3 x 3, then batch normalization with ReLU (NHWC).
 *
 * First inference, with the constants that table.c has prepared on the host, from flash and in place. Then a step of
 * fine-tuning: training forward, running statistics, backward, and gradient descent on gamma, beta and the
 * convolution; after which the device prepares its own constants.
 *
 * It has no heap, and prints the bits of its results: the same on a controller and on the host.
 *
 *   host:    cc -std=c99 -ffp-contract=off net.c $(pkg-config --cflags --libs batchnorm) -o net
 *   Cortex-M4F: see ci/capi.sh, which also runs it in an emulator
 */
#include "net.h"
#include "table.h"

void print(const char *text); /* startup.c, or below */

static float x[BATCH][HEIGHT][WIDTH][CHANNELS], z[BATCH][HEIGHT][WIDTH][CHANNELS], y[BATCH][HEIGHT][WIDTH][CHANNELS];
static float dz[BATCH][HEIGHT][WIDTH][CHANNELS]; /* dy, then the gradient of z in its place */
static float target[BATCH][HEIGHT][WIDTH][CHANNELS], weight[3][3][CHANNELS];
static float gamma[CHANNELS], beta[CHANNELS], running_mean[CHANNELS], running_var[CHANNELS];
static float dgamma[CHANNELS], dbeta[CHANNELS];
static batchnorm_prepared own[CHANNELS];
static batchnorm_moments moments[CHANNELS];
static uint64_t batches;
static batchnorm_desc desc;
static batchnorm_status status;

static void convolve(void) {
    for (int n = 0; n < BATCH; n++)
        for (int h = 0; h < HEIGHT; h++)
            for (int w = 0; w < WIDTH; w++)
                for (int c = 0; c < CHANNELS; c++) {
                    float sum = 0;
                    for (int i = -1; i <= 1; i++)
                        for (int j = -1; j <= 1; j++)
                            if (h + i >= 0 && h + i < HEIGHT && w + j >= 0 && w + j < WIDTH)
                                sum += x[n][h + i][w + j][c] * weight[i + 1][j + 1][c];
                    z[n][h][w][c] = sum;
                }
}

/* Gradient descent on the weights, whose gradient is that of z times x. */
static void descend(float rate) {
    for (int i = -1; i <= 1; i++)
        for (int j = -1; j <= 1; j++)
            for (int c = 0; c < CHANNELS; c++) {
                float sum = 0;
                for (int n = 0; n < BATCH; n++)
                    for (int h = 0; h < HEIGHT; h++)
                        for (int w = 0; w < WIDTH; w++)
                            if (h + i >= 0 && h + i < HEIGHT && w + j >= 0 && w + j < WIDTH)
                                sum += dz[n][h][w][c] * x[n][h + i][w + j][c];
                weight[i + 1][j + 1][c] -= rate * sum;
            }
    for (int c = 0; c < CHANNELS; c++) {
        gamma[c] -= rate * dgamma[c];
        beta[c] -= rate * dbeta[c];
    }
}

/* The mean squared distance of y from the target, and its gradient. */
static float loss(void) {
    const float *a = &y[0][0][0][0], *b = &target[0][0][0][0];
    float *d = &dz[0][0][0][0], sum = 0;
    const int count = BATCH * POSITIONS * CHANNELS;
    for (int i = 0; i < count; i++) {
        sum += (a[i] - b[i]) * (a[i] - b[i]);
        d[i] = 2.0f * (a[i] - b[i]) / (float)count;
    }
    return sum / (float)count;
}

static void apply(void) { status = batchnorm_apply(&desc, z, NULL, TABLE, z); }
static void forward(void) { status = batchnorm_forward_training(&desc, z, NULL, gamma, beta, y, moments); }
static void update(void) {
    status = batchnorm_running_update(desc.dtype, CHANNELS, moments, BATCHNORM_WEIGH_NEW, 0.1, 1, &batches, running_mean,
                                      running_var, NULL);
}
static void backward(void) {
    status = batchnorm_backward(&desc, z, y, dz, gamma, moments, dz, NULL, dgamma, dbeta);
}
static void prepare(void) {
    status = batchnorm_prepare(&desc, gamma, beta, running_mean, running_var, own);
}

static void print_word(const char *name, uint64_t value, int digits) {
    char text[17];
    text[digits] = 0;
    for (int i = digits; i > 0; value >>= 4) text[--i] = "0123456789abcdef"[value & 15];
    print(name);
    print(" ");
    print(text);
    print("\n");
}

/* FNV-1a over the bits. */
static void print_bits(const char *name, const float *values, int count) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (int i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        for (int b = 0; b < 32; b += 8) hash = (hash ^ (bits >> b & 255)) * 0x100000001b3u;
    }
    print_word(name, hash, 16);
}

#ifdef __arm__
/* Runs a call on painted stack, and prints how much of it has changed. */
static __attribute__((noinline)) void run(const char *name, void (*call)(void)) {
    enum { WORDS = 2048 };
    volatile uint32_t *top;
    __asm__ volatile("mov %0, sp" : "=r"(top));
    for (int i = 1; i <= WORDS; i++) top[-i] = 0x5ac3a53c;
    call();
    int used = WORDS;
    while (used > 0 && top[-used] == 0x5ac3a53c) used--;
    print("stack, ");
    print_word(name, 4u * (unsigned)used, 4);
}
#else
#include <stdio.h>
void print(const char *text) { fputs(text, stdout); }
static void run(const char *name, void (*call)(void)) {
    (void)name;
    call();
}
#endif

/* What the library refuses is a mistake of this program: it says which. */
static int refused(void) {
    if (status == BATCHNORM_OK) return 0;
    print(batchnorm_status_message(status));
    print("\n");
    return 1;
}

int main(void) {
    uint32_t seed = 1;
    float *a = &x[0][0][0][0], *t = &target[0][0][0][0], *k = &weight[0][0][0];
    const int count = BATCH * POSITIONS * CHANNELS;
    for (int i = 0; i < count; i++) a[i] = draw(&seed);
    for (int i = 0; i < count; i++) t[i] = 1.0f + draw(&seed);
    for (int i = 0; i < 9 * CHANNELS; i++) k[i] = draw(&seed);
    trained(gamma, beta, running_mean, running_var);
    desc = describe();
#ifdef __arm__
    static uint64_t workspace[128];
    desc.workspace = workspace;
    desc.workspace_bytes = sizeof workspace;
    if (batchnorm_workspace_min(&desc, BATCHNORM_OP_BACKWARD) > sizeof workspace) {
        print("the workspace is too small\n");
        return 1;
    }
#endif

    convolve();
    run("apply", apply);
    if (refused()) return 1;
    print_bits("inference", &z[0][0][0][0], count);

    convolve();
    run("forward_training", forward);
    if (refused()) return 1;
    run("running_update", update);
    if (refused()) return 1;
    float before = loss();
    run("backward", backward);
    if (refused()) return 1;
    descend(1.0f);
    print_bits("gamma", gamma, CHANNELS);
    print_bits("beta", beta, CHANNELS);
    print_bits("weight", k, 9 * CHANNELS);
    print_bits("running_mean", running_mean, CHANNELS);
    print_bits("running_var", running_var, CHANNELS);

    run("prepare", prepare);
    if (refused()) return 1;
    convolve();
    forward();
    float after = loss();
    status = batchnorm_apply(&desc, z, NULL, own, z);
    if (refused()) return 1;
    print_bits("tuned", &z[0][0][0][0], count);
    print(after < before ? "the loss has fallen\n" : "the loss has NOT fallen\n");
    return after < before ? 0 : 1;
}
