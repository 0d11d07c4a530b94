/*
 * Every call, in every dtype and layout: operands that are one another, slices of larger tensors, stages and
 * workspaces of all sizes give the bits of the plain call.
 */
#include "check.h"

typedef struct {
    uint32_t layout, dtype;
    size_t batch, channels, spatial;
} problem;

static problem p;
static size_t n, bytes, parameters;
static void *x, *residual, *dy, *gamma_, *beta, *mean, *var, *workspace;
static void *y, *dx, *dresidual, *dgamma, *dbeta;
static batchnorm_moments *moments;

static void *copy(const void *from, size_t size) {
    return memcpy(get_memory(size), from, size);
}

static int same(const void *a, const void *b) { return memcmp(a, b, bytes) == 0; }

static batchnorm_desc desc(uint32_t activation) {
    batchnorm_desc d = get_desc(p.layout, p.dtype, p.batch, p.channels, p.spatial);
    d.activation = activation;
    d.act_a = activation == BATCHNORM_CLAMP ? -1 : 0.25;
    d.act_b = 1;
    return d;
}

/* A tensor within one that has a gap of one channel, and back. */
static size_t wide_size(void) { return p.batch * (p.channels + 1) * p.spatial * size_of(p.dtype); }

static batchnorm_stride wide_stride(void) {
    batchnorm_stride s = {(p.channels + 1) * p.spatial, p.layout == BATCHNORM_NHWC ? p.channels + 1 : p.spatial};
    return s;
}

static void move(char *wide, char *dense, int out) {
    const size_t size = size_of(p.dtype);
    const size_t runs = p.layout == BATCHNORM_NHWC ? p.spatial : p.channels;
    const size_t run = (p.layout == BATCHNORM_NHWC ? p.channels : p.spatial) * size;
    const batchnorm_stride s = wide_stride();
    for (size_t i = 0; i < p.batch; i++) {
        for (size_t r = 0; r < runs; r++, dense += run) {
            char *w = wide + (i * s.batch + r * s.inner) * size;
            memcpy(out ? w : dense, out ? dense : w, run);
        }
    }
}

static void forward(uint32_t activation) {
    batchnorm_desc d = desc(activation);
    void *t = get_memory(bytes), *plain = get_memory(bytes);
    batchnorm_moments *m = get_memory(p.channels * sizeof *m);

    /* Without residual: y = x. */
    OK(batchnorm_forward_training(&d, x, NULL, gamma_, beta, plain, moments));
    memcpy(t, x, bytes);
    OK(batchnorm_forward_training(&d, t, NULL, gamma_, beta, t, m));
    CHECK(same(t, plain) && memcmp(m, moments, p.channels * sizeof *m) == 0);
    /* With: y = x, y = residual, both. */
    OK(batchnorm_forward_training(&d, x, residual, gamma_, beta, y, moments));
    memcpy(t, x, bytes);
    OK(batchnorm_forward_training(&d, t, residual, gamma_, beta, t, m));
    CHECK(same(t, y));
    memcpy(t, residual, bytes);
    OK(batchnorm_forward_training(&d, x, t, gamma_, beta, t, m));
    CHECK(same(t, y) && memcmp(m, moments, p.channels * sizeof *m) == 0);
    OK(batchnorm_forward_training(&d, x, x, gamma_, beta, plain, moments));
    memcpy(t, x, bytes);
    OK(batchnorm_forward_training(&d, t, t, gamma_, beta, t, m));
    CHECK(same(t, plain));
    /* Stages. */
    memset(m, 0, p.channels * sizeof *m);
    OK(batchnorm_moments_accumulate(&d, x, m));
    CHECK(memcmp(m, moments, p.channels * sizeof *m) == 0);
    OK(batchnorm_normalize(&d, x, residual, gamma_, beta, m, t));
    CHECK(same(t, y));
    memcpy(t, residual, bytes);
    OK(batchnorm_normalize(&d, x, t, gamma_, beta, m, t));
    CHECK(same(t, y));
    batchnorm_moments *twice = get_memory(p.channels * sizeof *m);
    memset(twice, 0, p.channels * sizeof *m);
    OK(batchnorm_moments_merge(p.channels, twice, m));
    CHECK(memcmp(m, twice, p.channels * sizeof *m) == 0);
    OK(batchnorm_moments_merge(p.channels, twice, m));
    CHECK(twice[0].count == 2 * m[0].count && twice[0].mean == m[0].mean);
    free(twice);

    /* Slices: of different tensors, of one in place, and interleaved with the output in one tensor. */
    char *wide_x = get_memory(wide_size()), *wide_y = get_memory(wide_size());
    move(wide_x, x, 1);
    d.x = d.y = wide_stride();
    char *before = copy(wide_y, wide_size());
    OK(batchnorm_forward_training(&d, wide_x, residual, gamma_, beta, wide_y, m));
    move(wide_y, t, 0);
    CHECK(same(t, y) && memcmp(m, moments, p.channels * sizeof *m) == 0);
    move(before, y, 1);
    CHECK(memcmp(before, wide_y, wide_size()) == 0); /* nothing in the gaps */
    OK(batchnorm_forward_training(&d, wide_x, residual, gamma_, beta, wide_x, m));
    move(wide_x, t, 0);
    CHECK(same(t, y));
    move(wide_y, residual, 1);
    move(wide_x, x, 1);
    d.residual = d.y;
    OK(batchnorm_forward_training(&d, wide_x, wide_y, gamma_, beta, wide_y, m));
    move(wide_y, t, 0);
    CHECK(same(t, y));
    free(wide_x), free(wide_y), free(before);

    /* Inference. */
    d = desc(activation);
    OK(batchnorm_forward_inference(&d, x, residual, gamma_, beta, mean, var, plain));
    memcpy(t, x, bytes);
    OK(batchnorm_forward_inference(&d, t, residual, gamma_, beta, mean, var, t));
    CHECK(same(t, plain));
    memcpy(t, residual, bytes);
    OK(batchnorm_forward_inference(&d, x, t, gamma_, beta, mean, var, t));
    CHECK(same(t, plain));
    if (p.dtype != BATCHNORM_F64) {
        batchnorm_prepared *prepared = get_memory(p.channels * sizeof *prepared);
        OK(batchnorm_prepare(&d, gamma_, beta, mean, var, prepared));
        OK(batchnorm_apply(&d, x, residual, prepared, t));
        CHECK(same(t, plain));
        memcpy(t, residual, bytes);
        OK(batchnorm_apply(&d, x, t, prepared, t));
        CHECK(same(t, plain));
        memcpy(t, x, bytes);
        OK(batchnorm_apply(&d, t, residual, prepared, t));
        CHECK(same(t, plain));
        free(prepared);
    }

    /* Any workspace. */
    for (int best = 0; best < 2; best++) {
        d.workspace = workspace;
        d.workspace_bytes = best ? batchnorm_workspace_best(&d, BATCHNORM_OP_FORWARD_TRAINING)
                                 : batchnorm_workspace_min(&d, BATCHNORM_OP_FORWARD_TRAINING);
        CHECK(d.workspace_bytes > 0 && d.workspace_bytes <= 1 << 20);
        OK(batchnorm_forward_training(&d, x, residual, gamma_, beta, t, m));
        CHECK(same(t, y) && memcmp(m, moments, p.channels * sizeof *m) == 0);
    }
    OK(batchnorm_forward_training(&d, x, residual, gamma_, beta, y, moments));
    free(t), free(plain), free(m);
}

static void backward(uint32_t activation) {
    batchnorm_desc d = desc(activation);
    void *t = get_memory(bytes), *u = get_memory(bytes);
    void *dg = get_memory(parameters), *db = get_memory(parameters);
    batchnorm_sums *sums = get_memory(p.channels * sizeof *sums);

    for (int frozen = 0; frozen < 2; frozen++) {
#define BACKWARD(dy, dx, dresidual, dgamma, dbeta)                                                            \
    OK(frozen ? batchnorm_backward_inference(&d, x, y, dy, gamma_, mean, var, dx, dresidual, dgamma, dbeta)    \
              : batchnorm_backward(&d, x, y, dy, gamma_, moments, dx, dresidual, dgamma, dbeta))
        BACKWARD(dy, dx, dresidual, dgamma, dbeta);
        memcpy(t, dy, bytes);
        BACKWARD(t, t, u, dg, db); /* dx = dy */
        CHECK(same(t, dx) && same(u, dresidual));
        CHECK(memcmp(dg, dgamma, parameters) == 0 && memcmp(db, dbeta, parameters) == 0);
        memcpy(t, dy, bytes);
        BACKWARD(t, u, t, dg, db); /* dresidual = dy */
        CHECK(same(t, dresidual) && same(u, dx));
        memcpy(t, dy, bytes);
        BACKWARD(t, NULL, t, NULL, NULL);
        CHECK(same(t, dresidual));
        BACKWARD(dy, NULL, NULL, dg, NULL);
        CHECK(memcmp(dg, dgamma, parameters) == 0);
        /* Slices, staged where they are narrow; dresidual = dy. */
        char *wide = get_memory(wide_size()), *wide_dx = get_memory(wide_size());
        move(wide, dy, 1);
        d.dy = d.dresidual = d.dx = wide_stride();
        BACKWARD(wide, wide_dx, wide, dg, db);
        move(wide, t, 0);
        move(wide_dx, u, 0);
        CHECK(same(t, dresidual) && same(u, dx) && memcmp(dg, dgamma, parameters) == 0);
        move(wide, dy, 1);
        BACKWARD(wide, wide, wide_dx, dg, db);
        move(wide, t, 0);
        CHECK(same(t, dx));
        free(wide), free(wide_dx);
        d = desc(activation);
        /* The smallest workspace goes band by band. */
        d.workspace = workspace;
        d.workspace_bytes = batchnorm_workspace_min(&d, BATCHNORM_OP_BACKWARD);
        memcpy(t, dy, bytes);
        BACKWARD(t, u, t, dg, db);
        CHECK(same(t, dresidual) && same(u, dx) && memcmp(db, dbeta, parameters) == 0);
        d = desc(activation);
    }
    /* Stages: not of the same bits, but whatever is one another. */
    OK(batchnorm_backward_sums(&d, x, y, dy, moments, sums));
    OK(batchnorm_backward_apply(&d, x, y, dy, gamma_, moments, sums, dx, u));
    memcpy(t, dy, bytes);
    OK(batchnorm_backward_apply(&d, x, y, t, gamma_, moments, sums, t, dresidual));
    CHECK(same(t, dx) && same(u, dresidual));
    memcpy(t, dy, bytes);
    OK(batchnorm_backward_apply(&d, x, y, t, gamma_, moments, sums, u, t));
    CHECK(same(t, dresidual) && same(u, dx));
    if (activation == BATCHNORM_IDENTITY || activation == BATCHNORM_LEAKY_RELU) {
        OK(batchnorm_backward_from_output(&d, y, dy, gamma_, beta, moments, dx, dgamma, dbeta));
        memcpy(t, dy, bytes);
        OK(batchnorm_backward_from_output(&d, y, t, gamma_, beta, moments, t, dg, db));
        CHECK(same(t, dx) && memcmp(dg, dgamma, parameters) == 0 && memcmp(db, dbeta, parameters) == 0);
    }
    free(t), free(u), free(dg), free(db), free(sums);
}

static void run(problem q) {
    p = q;
    n = p.batch * p.channels * p.spatial;
    bytes = n * size_of(p.dtype);
    parameters = p.channels * size_of_parameter(p.dtype);
    const uint32_t parameter = p.dtype == BATCHNORM_F64 ? BATCHNORM_F64 : BATCHNORM_F32;
    x = get_noise(p.dtype, n, 1), residual = get_noise(p.dtype, n, 2), dy = get_noise(p.dtype, n, 3);
    gamma_ = get_noise(parameter, p.channels, 4), beta = get_noise(parameter, p.channels, 5);
    mean = get_noise(parameter, p.channels, 6), var = get_noise(parameter, p.channels, 7);
    for (size_t c = 0; c < p.channels; c++) {
        put(parameter, var, c, 0.5f + (float)(c % 8) / 16.0f);
        put(parameter, gamma_, c, 1.0f + (float)(c % 4) / 16.0f);
    }
    y = get_memory(bytes), dx = get_memory(bytes), dresidual = get_memory(bytes);
    dgamma = get_memory(parameters), dbeta = get_memory(parameters);
    moments = get_memory(p.channels * sizeof *moments);
    workspace = get_memory(1 << 20);
    for (uint32_t activation = BATCHNORM_IDENTITY; activation <= BATCHNORM_CLAMP; activation++) {
        forward(activation);
        backward(activation);
    }
    free(x), free(residual), free(dy), free(gamma_), free(beta), free(mean), free(var);
    free(y), free(dx), free(dresidual), free(dgamma), free(dbeta), free(moments), free(workspace);
}

static void folding(void) {
    /* y = 2(x - 3) + 1 behind 5x + 1, and before it. */
    const batchnorm_prepared prepared[1] = {{3, 2, 1}};
    float weight[1] = {5}, bias[1] = {1};
    OK(batchnorm_fold_before(prepared, 1, 1, weight, bias));
    CHECK(weight[0] == 10 && bias[0] == -3);
    weight[0] = 5, bias[0] = 1;
    OK(batchnorm_fold_after(prepared, 1, 1, 1, weight, bias));
    CHECK(weight[0] == 10 && bias[0] == -24);
}

int main(void) {
    const size_t sizes[][3] = {{5, 3, 1}, {3, 20, 7}, {6, 70, 21}, {2, 1, 40}, {9, 5, 64}, {33, 130, 1}};
    for (uint32_t dtype = BATCHNORM_F32; dtype <= BATCHNORM_BF16; dtype++) {
        for (uint32_t layout = BATCHNORM_NCHW; layout <= BATCHNORM_NHWC; layout++) {
            for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
                const problem q = {layout, dtype, sizes[i][0], sizes[i][1], sizes[i][2]};
                run(q);
            }
        }
    }
    folding();
    return 0;
}
