/* Every status, by every way to it; and that nothing has been written then. */
#include <math.h>

#include "check.h"

enum { BATCH = 4, CHANNELS = 6, SPATIAL = 10, N = BATCH * CHANNELS * SPATIAL };

static struct {
    double x[N], y[N], residual[N], dy[N], dx[N], dresidual[N];
    double gamma[CHANNELS], beta[CHANNELS], mean[CHANNELS], var[CHANNELS];
    double dgamma[CHANNELS], dbeta[CHANNELS], workspace[2048];
    batchnorm_moments moments[CHANNELS], other[CHANNELS];
    batchnorm_sums sums[CHANNELS];
    batchnorm_prepared prepared[CHANNELS];
    float weight[CHANNELS * CHANNELS], bias[CHANNELS];
    uint64_t batches;
    size_t skipped;
} a, before;

static batchnorm_desc d;

static void reset(void) {
    memset(&a, 0, sizeof a);
    float *x = (float *)a.x, *dy = (float *)a.dy;
    for (size_t i = 0; i < N; i++) {
        x[i] = (float)(i % 17), dy[i] = (float)(i % 5);
    }
    d = get_desc(BATCHNORM_NCHW, BATCHNORM_F32, BATCH, CHANNELS, SPATIAL);
    for (size_t c = 0; c < CHANNELS; c++) {
        ((float *)a.gamma)[c] = 1, ((float *)a.var)[c] = 1;
        a.prepared[c].scale = 1;
    }
    OK(batchnorm_moments_accumulate(&d, a.x, a.moments));
    memcpy(&before, &a, sizeof a);
}

/* The call is refused with this status, and has written nothing. */
#define REFUSED(status, call)                             \
    do {                                                  \
        EXPECT(status, call);                             \
        CHECK(memcmp(&before, &a, sizeof a) == 0);        \
    } while (0)

static batchnorm_status training(void) {
    return batchnorm_forward_training(&d, a.x, NULL, a.gamma, a.beta, a.y, a.moments);
}

/* Every call that takes a descriptor is refused with this status. */
static void all_refused(batchnorm_status status, const batchnorm_desc *p) {
    REFUSED(status, batchnorm_forward_training(p, a.x, a.residual, a.gamma, a.beta, a.y, a.moments));
    REFUSED(status, batchnorm_forward_inference(p, a.x, a.residual, a.gamma, a.beta, a.mean, a.var, a.y));
    REFUSED(status, batchnorm_prepare(p, a.gamma, a.beta, a.mean, a.var, a.prepared));
    REFUSED(status, batchnorm_apply(p, a.x, a.residual, a.prepared, a.y));
    REFUSED(status, batchnorm_backward(p, a.x, a.y, a.dy, a.gamma, a.moments, a.dx, a.dresidual, a.dgamma,
                                       a.dbeta));
    REFUSED(status, batchnorm_backward_inference(p, a.x, a.y, a.dy, a.gamma, a.mean, a.var, a.dx, a.dresidual,
                                                 a.dgamma, a.dbeta));
    REFUSED(status, batchnorm_backward_from_output(p, a.y, a.dy, a.gamma, a.beta, a.moments, a.dx, a.dgamma,
                                                   a.dbeta));
    REFUSED(status, batchnorm_moments_accumulate(p, a.x, a.moments));
    REFUSED(status, batchnorm_normalize(p, a.x, a.residual, a.gamma, a.beta, a.moments, a.y));
    REFUSED(status, batchnorm_backward_sums(p, a.x, a.y, a.dy, a.moments, a.sums));
    REFUSED(status, batchnorm_backward_apply(p, a.x, a.y, a.dy, a.gamma, a.moments, a.sums, a.dx, a.dresidual));
    CHECK(batchnorm_workspace_min(p, BATCHNORM_OP_BACKWARD) == 0);
    CHECK(batchnorm_workspace_best(p, BATCHNORM_OP_BACKWARD) == 0);
}

static void descriptors(void) {
    reset();
    all_refused(BATCHNORM_ERROR_NULL, NULL);
    all_refused(BATCHNORM_ERROR_ALIGNMENT, (const batchnorm_desc *)((const char *)&d + 2));
    const uint32_t sizes[] = {0, sizeof d - 8, sizeof d + 8, UINT32_MAX};
    for (size_t i = 0; i < 4; i++) {
        d.struct_size = sizes[i];
        all_refused(BATCHNORM_ERROR_STRUCT_SIZE, &d);
    }
#define WITH(change, status)       \
    reset();                       \
    d.change;                      \
    all_refused(status, &d)
    WITH(layout = 2, BATCHNORM_ERROR_ENUM);
    WITH(dtype = 4, BATCHNORM_ERROR_ENUM);
    WITH(activation = 4, BATCHNORM_ERROR_ENUM);
    WITH(isa = 4, BATCHNORM_ERROR_ENUM);
    WITH(flags = 2, BATCHNORM_ERROR_ENUM);
    WITH(channels = 0, BATCHNORM_ERROR_CHANNELS);
    WITH(batch = SIZE_MAX / 2, BATCHNORM_ERROR_SIZE);
    WITH(spatial = SIZE_MAX / 8, BATCHNORM_ERROR_SIZE);
    WITH(channels = SIZE_MAX, BATCHNORM_ERROR_SIZE);
    WITH(epsilon = -1e-5, BATCHNORM_ERROR_EPSILON);
    WITH(epsilon = HUGE_VAL, BATCHNORM_ERROR_EPSILON);
    WITH(epsilon = NAN, BATCHNORM_ERROR_EPSILON);
    WITH(activation = BATCHNORM_LEAKY_RELU; d.act_a = -1, BATCHNORM_ERROR_ACTIVATION);
    WITH(activation = BATCHNORM_CLAMP; d.act_a = 6, BATCHNORM_ERROR_ACTIVATION);
    WITH(activation = BATCHNORM_CLAMP; d.act_b = NAN, BATCHNORM_ERROR_ACTIVATION);
    WITH(x.inner = SPATIAL - 1, BATCHNORM_ERROR_STRIDE);
    WITH(y.batch = CHANNELS * SPATIAL - 1, BATCHNORM_ERROR_STRIDE);
    WITH(dresidual.inner = SIZE_MAX / 4, BATCHNORM_ERROR_STRIDE);
    const batchnorm_executor nothing = {NULL, NULL, 2};
    WITH(executor = &nothing, BATCHNORM_ERROR_NULL);

    /* Those that the CPU lacks, if it lacks any. */
    for (uint32_t isa = BATCHNORM_ISA_AVX2; isa <= BATCHNORM_ISA_AVX512; isa++) {
        reset();
        if (batchnorm_conformance_hash(isa) == 0) {
            d.isa = isa;
            all_refused(BATCHNORM_ERROR_ISA, &d);
        }
    }
    /* Without a form for double. */
    reset();
    d.dtype = BATCHNORM_F64;
    REFUSED(BATCHNORM_ERROR_DTYPE, batchnorm_prepare(&d, NULL, NULL, a.mean, a.var, a.prepared));
    REFUSED(BATCHNORM_ERROR_DTYPE, batchnorm_apply(&d, a.x, NULL, a.prepared, a.y));
}

static void null_pointers(void) {
    reset();
    const batchnorm_status no = BATCHNORM_ERROR_NULL;
    REFUSED(no, batchnorm_forward_training(&d, NULL, NULL, NULL, NULL, a.y, a.moments));
    REFUSED(no, batchnorm_forward_training(&d, a.x, NULL, NULL, NULL, NULL, a.moments));
    REFUSED(no, batchnorm_forward_training(&d, a.x, NULL, NULL, NULL, a.y, NULL));
    REFUSED(no, batchnorm_forward_inference(&d, NULL, NULL, NULL, NULL, a.mean, a.var, a.y));
    REFUSED(no, batchnorm_forward_inference(&d, a.x, NULL, NULL, NULL, NULL, a.var, a.y));
    REFUSED(no, batchnorm_forward_inference(&d, a.x, NULL, NULL, NULL, a.mean, NULL, a.y));
    REFUSED(no, batchnorm_forward_inference(&d, a.x, NULL, NULL, NULL, a.mean, a.var, NULL));
    REFUSED(no, batchnorm_prepare(&d, NULL, NULL, NULL, a.var, a.prepared));
    REFUSED(no, batchnorm_prepare(&d, NULL, NULL, a.mean, NULL, a.prepared));
    REFUSED(no, batchnorm_prepare(&d, NULL, NULL, a.mean, a.var, NULL));
    REFUSED(no, batchnorm_apply(&d, NULL, NULL, a.prepared, a.y));
    REFUSED(no, batchnorm_apply(&d, a.x, NULL, NULL, a.y));
    REFUSED(no, batchnorm_apply(&d, a.x, NULL, a.prepared, NULL));
    REFUSED(no, batchnorm_backward(&d, NULL, NULL, a.dy, NULL, a.moments, a.dx, NULL, NULL, NULL));
    REFUSED(no, batchnorm_backward(&d, a.x, NULL, NULL, NULL, a.moments, a.dx, NULL, NULL, NULL));
    REFUSED(no, batchnorm_backward(&d, a.x, NULL, a.dy, NULL, NULL, a.dx, NULL, NULL, NULL));
    REFUSED(no, batchnorm_backward_inference(&d, a.x, NULL, a.dy, NULL, NULL, a.var, a.dx, NULL, NULL, NULL));
    REFUSED(no, batchnorm_backward_inference(&d, a.x, NULL, a.dy, NULL, a.mean, NULL, a.dx, NULL, NULL, NULL));
    REFUSED(no, batchnorm_backward_from_output(&d, NULL, a.dy, NULL, NULL, a.moments, a.dx, NULL, NULL));
    REFUSED(no, batchnorm_backward_from_output(&d, a.y, NULL, NULL, NULL, a.moments, a.dx, NULL, NULL));
    REFUSED(no, batchnorm_backward_from_output(&d, a.y, a.dy, NULL, NULL, NULL, a.dx, NULL, NULL));
    REFUSED(no, batchnorm_moments_accumulate(&d, NULL, a.moments));
    REFUSED(no, batchnorm_moments_accumulate(&d, a.x, NULL));
    REFUSED(no, batchnorm_moments_merge(CHANNELS, NULL, a.moments));
    REFUSED(no, batchnorm_moments_merge(CHANNELS, a.moments, NULL));
    REFUSED(no, batchnorm_normalize(&d, a.x, NULL, NULL, NULL, NULL, a.y));
    REFUSED(no, batchnorm_backward_sums(&d, a.x, NULL, a.dy, NULL, a.sums));
    REFUSED(no, batchnorm_backward_sums(&d, a.x, NULL, a.dy, a.moments, NULL));
    REFUSED(no, batchnorm_backward_apply(&d, a.x, NULL, a.dy, NULL, NULL, a.sums, a.dx, NULL));
    REFUSED(no, batchnorm_backward_apply(&d, a.x, NULL, a.dy, NULL, a.moments, NULL, a.dx, NULL));
    REFUSED(no, batchnorm_running_update(0, CHANNELS, NULL, 0, 0.1, 0, NULL, a.mean, a.var, NULL));
    REFUSED(no, batchnorm_running_update(0, CHANNELS, a.moments, 0, 0.1, 0, NULL, NULL, a.var, NULL));
    REFUSED(no, batchnorm_running_update(0, CHANNELS, a.moments, 0, 0.1, 0, NULL, a.mean, NULL, NULL));
    REFUSED(no, batchnorm_running_update(0, CHANNELS, a.moments, BATCHNORM_CUMULATIVE, 0, 0, NULL, a.mean,
                                         a.var, NULL));
    REFUSED(no, batchnorm_fold_before(NULL, CHANNELS, 1, a.weight, a.bias));
    REFUSED(no, batchnorm_fold_before(a.prepared, CHANNELS, 1, NULL, a.bias));
    REFUSED(no, batchnorm_fold_after(a.prepared, CHANNELS, CHANNELS, 1, a.weight, NULL));
    /* With an activation y is needed. */
    d.activation = BATCHNORM_RELU;
    REFUSED(no, batchnorm_backward(&d, a.x, NULL, a.dy, NULL, a.moments, a.dx, NULL, NULL, NULL));
    REFUSED(no, batchnorm_backward_inference(&d, a.x, NULL, a.dy, NULL, a.mean, a.var, a.dx, NULL, NULL, NULL));
    REFUSED(no, batchnorm_backward_sums(&d, a.x, NULL, a.dy, a.moments, a.sums));
    REFUSED(no, batchnorm_backward_apply(&d, a.x, NULL, a.dy, NULL, a.moments, a.sums, a.dx, NULL));
    /* What may be NULL. */
    d.activation = BATCHNORM_IDENTITY;
    OK(batchnorm_forward_training(&d, a.x, NULL, NULL, NULL, a.y, a.moments));
    OK(batchnorm_backward(&d, a.x, NULL, a.dy, NULL, a.moments, NULL, NULL, NULL, NULL));
    OK(batchnorm_running_update(0, CHANNELS, a.moments, 0, 0.1, 0, NULL, a.mean, a.var, NULL));
    d.batch = 0;
    OK(batchnorm_forward_inference(&d, NULL, NULL, NULL, NULL, a.mean, a.var, NULL));
    OK(batchnorm_moments_accumulate(&d, NULL, a.moments));
}

static void alignment(void) {
    reset();
    const batchnorm_status no = BATCHNORM_ERROR_ALIGNMENT;
    char *x = (char *)a.x + 2, *y = (char *)a.y + 1;
    REFUSED(no, batchnorm_forward_training(&d, x, NULL, NULL, NULL, a.y, a.moments));
    REFUSED(no, batchnorm_forward_training(&d, a.x, x, NULL, NULL, a.y, a.moments));
    REFUSED(no, batchnorm_forward_training(&d, a.x, NULL, (char *)a.gamma + 1, NULL, a.y, a.moments));
    REFUSED(no, batchnorm_forward_training(&d, a.x, NULL, NULL, NULL, y, a.moments));
    REFUSED(no, batchnorm_forward_training(&d, a.x, NULL, NULL, NULL, a.y,
                                           (batchnorm_moments *)((char *)a.moments + 2)));
    d.workspace = (char *)a.workspace + 2;
    d.workspace_bytes = sizeof a.workspace - 8;
    REFUSED(no, training());
}

static void overlaps(void) {
    reset();
    const batchnorm_status no = BATCHNORM_ERROR_OVERLAP;
    float *x = (float *)a.x;
    /* By an element, from either side; by a part of an element. */
    REFUSED(no, batchnorm_forward_training(&d, x + 1, NULL, NULL, NULL, x, a.moments));
    REFUSED(no, batchnorm_forward_training(&d, x, NULL, NULL, NULL, x + 1, a.moments));
    REFUSED(no, batchnorm_forward_training(&d, x, NULL, NULL, NULL, x + N - 1, a.moments));
    REFUSED(no, batchnorm_forward_training(&d, a.dy, x + 1, NULL, NULL, x, a.moments));
    OK(batchnorm_forward_training(&d, x, NULL, NULL, NULL, x + N, a.moments));
    reset();
    /* Outputs and arrays. */
    REFUSED(no, batchnorm_forward_training(&d, a.x, NULL, a.y, NULL, a.y, a.moments));
    REFUSED(no, batchnorm_forward_training(&d, a.x, NULL, NULL, NULL, a.moments, a.moments));
    REFUSED(no, batchnorm_forward_training(&d, a.moments, NULL, NULL, NULL, a.y, a.moments));
    REFUSED(no, batchnorm_normalize(&d, a.x, NULL, NULL, NULL, (batchnorm_moments *)(void *)a.y, a.y));
    REFUSED(no, batchnorm_backward(&d, a.x, NULL, a.dy, NULL, a.moments, a.x, NULL, NULL, NULL));
    REFUSED(no, batchnorm_backward(&d, a.x, NULL, a.dy, NULL, a.moments, a.dx, a.dx, NULL, NULL));
    REFUSED(no, batchnorm_backward(&d, a.x, NULL, a.dy, NULL, a.moments, a.dy, a.dy, NULL, NULL));
    REFUSED(no, batchnorm_backward(&d, a.x, NULL, a.dy, a.gamma, a.moments, a.dx, NULL, a.gamma, NULL));
    REFUSED(no, batchnorm_backward(&d, a.x, NULL, a.dy, NULL, a.moments, a.dx, NULL, a.dbeta, a.dbeta));
    REFUSED(no, batchnorm_backward_apply(&d, a.x, NULL, a.dy, NULL, a.moments, a.sums, (char *)a.dy + 4, NULL));
    REFUSED(no, batchnorm_backward_from_output(&d, a.y, a.dy, NULL, NULL, a.moments, a.y, NULL, NULL));
    d.activation = BATCHNORM_RELU;
    REFUSED(no, batchnorm_backward(&d, a.x, a.y, a.dy, NULL, a.moments, a.y, NULL, NULL, NULL));
    d.activation = BATCHNORM_IDENTITY;
    REFUSED(no, batchnorm_moments_merge(CHANNELS, a.moments, a.moments));
    REFUSED(no, batchnorm_moments_merge(2, a.moments + 1, a.moments));
    REFUSED(no, batchnorm_running_update(0, CHANNELS, a.moments, 0, 0.1, 0, NULL, a.mean, a.mean, NULL));
    REFUSED(no, batchnorm_prepare(&d, NULL, NULL, a.prepared, a.var, a.prepared));
    REFUSED(no, batchnorm_fold_before(a.prepared, CHANNELS, 1, a.weight, a.weight));
    /* The workspace. */
    d.workspace = a.y;
    d.workspace_bytes = sizeof a.y;
    REFUSED(no, training());
    /* The same address with other strides; slices of channels that share one, and that do not. */
    reset();
    d.channels = 2;
    d.y.batch = 4 * SPATIAL;
    REFUSED(no, batchnorm_forward_training(&d, x, NULL, NULL, NULL, x, a.moments));
    d.x.batch = 4 * SPATIAL;
    REFUSED(no, batchnorm_forward_training(&d, x, NULL, NULL, NULL, x + SPATIAL, a.moments));
    OK(batchnorm_forward_training(&d, x, NULL, NULL, NULL, x + 2 * SPATIAL, a.moments));
    OK(batchnorm_forward_training(&d, x, NULL, NULL, NULL, x, a.moments));
    reset();
    d.layout = BATCHNORM_NHWC;
    d.channels = 3;
    d.x.inner = d.y.inner = 6;
    REFUSED(no, batchnorm_forward_training(&d, x, NULL, NULL, NULL, x + 2, a.moments));
    OK(batchnorm_forward_training(&d, x, NULL, NULL, NULL, x + 3, a.moments));
}

static void refuse_run(void *ctx, size_t tickets, void (*task)(void *arg, size_t ticket), void *arg) {
    (void)ctx, (void)tickets, (void)task, (void)arg;
}

static void run_twice(void *ctx, size_t tickets, void (*task)(void *arg, size_t ticket), void *arg) {
    (void)ctx;
    for (size_t i = 0; i <= tickets; i++) {
        task(arg, i);
    }
}

static void others(void) {
    reset();
    /* Workspace. */
    d.workspace = a.workspace;
    d.workspace_bytes = batchnorm_workspace_min(&d, BATCHNORM_OP_FORWARD_TRAINING);
    CHECK(d.workspace_bytes > 0 && d.workspace_bytes <= 8192);
    OK(training());
    reset();
    d.workspace = a.workspace;
    d.workspace_bytes = batchnorm_workspace_min(&d, BATCHNORM_OP_FORWARD_TRAINING) - 1;
    REFUSED(BATCHNORM_ERROR_WORKSPACE, training());
    d.workspace_bytes = 0;
    REFUSED(BATCHNORM_ERROR_WORKSPACE, batchnorm_backward(&d, a.x, NULL, a.dy, NULL, a.moments, a.dx, NULL, NULL,
                                                          NULL));
    CHECK(batchnorm_workspace_min(&d, 3) == 0 && batchnorm_workspace_best(&d, 3) == 0);
    CHECK(batchnorm_workspace_best(&d, 0) >= batchnorm_workspace_min(&d, 0));

    /* Values. */
    reset();
    d.batch = d.spatial = 1;
    REFUSED(BATCHNORM_ERROR_TOO_FEW_VALUES, training());
    d.flags = BATCHNORM_ALLOW_ONE_VALUE;
    OK(training());
    d.batch = 0;
    reset();
    d.batch = 0;
    d.flags = BATCHNORM_ALLOW_ONE_VALUE;
    REFUSED(BATCHNORM_ERROR_TOO_FEW_VALUES, training());
    REFUSED(BATCHNORM_ERROR_TOO_FEW_VALUES, batchnorm_normalize(&d, a.x, NULL, NULL, NULL, a.other, a.y));

    /* Moments of something else. */
    reset();
    a.moments[3].count++;
    before.moments[3].count++;
    REFUSED(BATCHNORM_ERROR_COUNT, batchnorm_backward(&d, a.x, NULL, a.dy, NULL, a.moments, a.dx, NULL, NULL, NULL));
    REFUSED(BATCHNORM_ERROR_COUNT, batchnorm_backward_from_output(&d, a.y, a.dy, NULL, NULL, a.moments, a.dx, NULL,
                                                                  NULL));

    reset();
    const batchnorm_status no = BATCHNORM_ERROR_NOT_INVERTIBLE;
    REFUSED(no, batchnorm_backward_from_output(&d, a.y, a.dy, a.beta, NULL, a.moments, a.dx, NULL, NULL));
    d.activation = BATCHNORM_RELU;
    REFUSED(no, batchnorm_backward_from_output(&d, a.y, a.dy, NULL, NULL, a.moments, a.dx, NULL, NULL));

    /* Running statistics. */
    reset();
    uint64_t *batches = &a.batches;
    const double bad[] = {-0.1, 1.1, NAN};
    for (size_t i = 0; i < 3; i++) {
        for (uint32_t rule = BATCHNORM_WEIGH_NEW; rule <= BATCHNORM_WEIGH_OLD; rule++) {
            REFUSED(BATCHNORM_ERROR_MOMENTUM, batchnorm_running_update(0, CHANNELS, a.moments, rule, bad[i], 0,
                                                                       batches, a.mean, a.var, &a.skipped));
        }
    }
    REFUSED(BATCHNORM_ERROR_ENUM, batchnorm_running_update(0, CHANNELS, a.moments, 3, 0.1, 0, batches, a.mean, a.var,
                                                           &a.skipped));
    REFUSED(BATCHNORM_ERROR_ENUM, batchnorm_running_update(0, CHANNELS, a.moments, 0, 0.1, 2, batches, a.mean, a.var,
                                                           &a.skipped));
    REFUSED(BATCHNORM_ERROR_ENUM, batchnorm_running_update(4, CHANNELS, a.moments, 0, 0.1, 0, batches, a.mean, a.var,
                                                           &a.skipped));
    REFUSED(BATCHNORM_ERROR_SIZE, batchnorm_running_update(0, SIZE_MAX / 16, a.moments, 0, 0.1, 0, batches, a.mean,
                                                           a.var, &a.skipped));
    REFUSED(BATCHNORM_ERROR_SIZE, batchnorm_moments_merge(SIZE_MAX, a.other, a.moments));
    a.moments[1].mean = NAN;
    OK(batchnorm_running_update(0, CHANNELS, a.moments, 0, 0.1, 1, batches, a.mean, a.var, &a.skipped));
    CHECK(a.skipped == 1 && a.batches == 1);

    /* Constants. */
    reset();
    ((float *)a.gamma)[2] = ((float *)before.gamma)[2] = 3e38f;
    ((float *)a.var)[2] = ((float *)before.var)[2] = 1e-38f;
    REFUSED(BATCHNORM_ERROR_UNPREPARABLE, batchnorm_prepare(&d, a.gamma, NULL, a.mean, a.var, a.prepared));
    reset();
    a.prepared[5].scale = before.prepared[5].scale = 3e38f;
    a.weight[5] = before.weight[5] = 1e30f;
    REFUSED(BATCHNORM_ERROR_UNFOLDABLE, batchnorm_fold_before(a.prepared, CHANNELS, 1, a.weight, a.bias));
    REFUSED(BATCHNORM_ERROR_UNFOLDABLE, batchnorm_fold_after(a.prepared, 1, CHANNELS, 1, a.weight, a.bias));
    REFUSED(BATCHNORM_ERROR_SIZE, batchnorm_fold_before(a.prepared, CHANNELS, SIZE_MAX / 2, a.weight, a.bias));
    REFUSED(BATCHNORM_ERROR_SIZE, batchnorm_fold_after(a.prepared, SIZE_MAX / 4, CHANNELS, 1, a.weight, a.bias));
    REFUSED(BATCHNORM_ERROR_CHANNELS, batchnorm_fold_before(a.prepared, 0, 1, a.weight, a.bias));
}

/* Executors that do not run each ticket once; the call notices and goes on living. */
static void executors(void) {
    enum { MANY = 1 << 17 };
    float *x = get_noise(BATCHNORM_F32, MANY, 1), *y = get_memory(MANY * sizeof(float));
    batchnorm_moments moments[4];
    batchnorm_executor none = {refuse_run, NULL, 2}, twice = {run_twice, NULL, 2};
    batchnorm_desc e = get_desc(BATCHNORM_NCHW, BATCHNORM_F32, 4, 4, MANY / 16);
    e.executor = &none;
    EXPECT(BATCHNORM_ERROR_EXECUTOR, batchnorm_forward_training(&e, x, NULL, NULL, NULL, y, moments));
    e.executor = &twice;
    EXPECT(BATCHNORM_ERROR_EXECUTOR, batchnorm_forward_training(&e, x, NULL, NULL, NULL, y, moments));
    /* Too wide for its memory to be had. */
    batchnorm_executor wide = {run_twice, NULL, SIZE_MAX};
    e.executor = &wide;
    batchnorm_status status = batchnorm_forward_training(&e, x, NULL, NULL, NULL, y, moments);
    CHECK(status == BATCHNORM_OK || status == BATCHNORM_ERROR_EXECUTOR);
    free(x), free(y);
}

static void messages(void) {
    for (batchnorm_status s = -1; s <= BATCHNORM_ERROR_INTERNAL + 1; s++) {
        const char *m = batchnorm_status_message(s);
        CHECK(m != NULL && strlen(m) > 3);
        for (batchnorm_status t = BATCHNORM_OK; t < s; t++) {
            CHECK(s > BATCHNORM_ERROR_INTERNAL || strcmp(m, batchnorm_status_message(t)) != 0);
        }
    }
    const char *const names[] = {NULL, "portable", "avx2", "avx512"};
    for (uint32_t isa = 1; isa < 4; isa++) {
        CHECK(strcmp(batchnorm_isa_name(isa), names[isa]) == 0);
    }
    const char *best = batchnorm_isa_name(BATCHNORM_ISA_DETECT);
    CHECK(!strcmp(best, names[1]) || !strcmp(best, names[2]) || !strcmp(best, names[3]));
    CHECK(strcmp(batchnorm_isa_name(99), "unknown") == 0);
    CHECK(batchnorm_bits_version() >= 1 && batchnorm_version() < 1u << 24);
    const uint64_t hash = batchnorm_conformance_hash(BATCHNORM_ISA_PORTABLE);
    CHECK(hash != 0 && batchnorm_conformance_hash(4) == 0);
    for (uint32_t isa = 0; isa < 4; isa++) {
        const uint64_t h = batchnorm_conformance_hash(isa);
        CHECK(h == hash || (h == 0 && isa > 1));
    }
}

int main(void) {
    descriptors();
    null_pointers();
    alignment();
    overlaps();
    others();
    executors();
    messages();
    return 0;
}
