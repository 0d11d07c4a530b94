/*
 * The floating-point environment of the caller, and of the executor's threads, changes no bit, and is found
 * again afterwards.
 */
#include <fenv.h>

#include "own_executor.h"

#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
static unsigned get_control(void) { return _mm_getcsr(); }
/* FTZ, DAZ, towards zero, and a flag. */
static void set_strange(void) { _mm_setcsr(0x1f80 | 0x8000 | 0x0040 | 0x6000 | 0x0020); }
#elif defined(__aarch64__)
static unsigned get_control(void) {
    uint64_t v;
    __asm__ volatile("mrs %0, fpcr" : "=r"(v));
    return (unsigned)v;
}
static void set_strange(void) { __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)(1 << 24 | 3 << 22))); }
#elif defined(__arm__) && defined(__ARM_FP)
static unsigned get_control(void) {
    unsigned v;
    __asm__ volatile("vmrs %0, fpscr" : "=r"(v));
    return v;
}
static void set_strange(void) { __asm__ volatile("vmsr fpscr, %0" : : "r"(1u << 24 | 3u << 22)); }
#else
#error "no such environment"
#endif

enum { BATCH = 8, CHANNELS = 16, SPATIAL = 1024, N = BATCH * CHANNELS * SPATIAL };

/* Made before the environment is changed: this program's own arithmetic would suffer, too. */
static struct {
    float x[N], dy[N], mean[CHANNELS], var[CHANNELS], weight[CHANNELS];
    batchnorm_prepared tiny[CHANNELS];
    batchnorm_moments into, from;
    batchnorm_desc desc;
} in;

typedef struct {
    float y[N], inferred[N], applied[N], dx[N], dgamma[CHANNELS];
    float mean[CHANNELS], var[CHANNELS], weight[CHANNELS], bias[CHANNELS];
    batchnorm_moments moments[CHANNELS], merged;
    batchnorm_prepared prepared[CHANNELS];
    batchnorm_sums sums[CHANNELS];
    uint64_t conformance;
} results;

/* Subnormal x and dy; products that are; and inexact quotients everywhere. */
static void init(void) {
    uint32_t seed = 1;
    in.desc = get_desc(BATCHNORM_NCHW, BATCHNORM_F32, BATCH, CHANNELS, SPATIAL);
    for (size_t i = 0; i < N; i++) {
        uint32_t bits;
        seed = seed * 1664525u + 1013904223u;
        bits = seed >> 10; /* below 2^-126 */
        memcpy(&in.x[i], &bits, 4);
        bits = seed >> 9 | (i % 2 ? 0x80000000u : 0);
        memcpy(&in.dy[i], &bits, 4);
    }
    for (size_t c = 0; c < CHANNELS; c++) {
        in.mean[c] = (float)c * 1e-40f;
        in.var[c] = 1.0f / (float)(c + 3);
        in.weight[c] = 1e-20f;
        in.tiny[c].mean = 0, in.tiny[c].scale = 3e-20f, in.tiny[c].shift = 1e-39f;
    }
    const batchnorm_moments into = {3, 1e-310, 3e-311}, from = {7, 3e-310, 1e-311};
    in.into = into;
    in.from = from;
}

/* Calls of the library, and nothing that calculates. */
static void run(const batchnorm_executor *executor, results *r) {
    batchnorm_desc d = in.desc;
    d.executor = executor;
    memset(r, 0, sizeof *r);
    OK(batchnorm_forward_training(&d, in.x, NULL, NULL, NULL, r->y, r->moments));
    OK(batchnorm_backward(&d, in.x, NULL, in.dy, NULL, r->moments, r->dx, NULL, r->dgamma, NULL));
    OK(batchnorm_backward_sums(&d, in.x, NULL, in.dy, r->moments, r->sums));
    OK(batchnorm_running_update(BATCHNORM_F32, CHANNELS, r->moments, BATCHNORM_WEIGH_OLD, 0.1, 0, NULL,
                                r->mean, r->var, NULL));
    OK(batchnorm_forward_inference(&d, in.x, in.dy, NULL, NULL, in.mean, in.var, r->inferred));
    OK(batchnorm_prepare(&d, NULL, NULL, in.mean, in.var, r->prepared));
    OK(batchnorm_apply(&d, in.x, in.dy, r->prepared, r->applied));
    r->merged = in.into;
    OK(batchnorm_moments_merge(1, &r->merged, &in.from));
    memcpy(r->weight, in.weight, sizeof r->weight);
    OK(batchnorm_fold_before(in.tiny, CHANNELS, 1, r->weight, r->bias));
    r->conformance = batchnorm_conformance_hash(BATCHNORM_ISA_DETECT);
}

static size_t subnormals(const float *v, size_t n) {
    size_t found = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &v[i], 4);
        found += (bits & 0x7fffffffu) - 1 < 0x7fffffu;
    }
    return found;
}

int main(void) {
    static results expected, r;
    const unsigned found = get_control();
    init();
    run(NULL, &expected);
    /* Results that flushing would show in. */
    CHECK(subnormals(expected.weight, CHANNELS) == CHANNELS && subnormals(expected.bias, CHANNELS) == CHANNELS);
    CHECK(subnormals(expected.inferred, N) > N / 4 && subnormals(expected.mean, CHANNELS) > 0);
    CHECK(memcmp(expected.inferred, expected.applied, sizeof expected.inferred) == 0);

    const batchnorm_executor *pool = batchnorm_threads_new(2);
    CHECK(pool != NULL);
    own_context context = {0, set_strange};
    const batchnorm_executor own = {own_run, &context, 3};
    const batchnorm_executor *const executors[] = {NULL, pool, &own};
    for (size_t i = 0; i < 3; i++) {
        set_strange();
        const unsigned before = get_control();
        run(executors[i], &r);
        const unsigned after = get_control();
        fesetenv(FE_DFL_ENV);
        CHECK(before == after && before != found);
        CHECK(memcmp(expected.y, r.y, sizeof r.y) == 0);
        CHECK(memcmp(expected.dx, r.dx, sizeof r.dx) == 0);
        CHECK(memcmp(&expected, &r, sizeof r) == 0);
    }
    CHECK(context.calls > 0);
    batchnorm_threads_free(pool);
    return 0;
}
