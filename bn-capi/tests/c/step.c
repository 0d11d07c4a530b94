/*
 * One training step of batch normalization with ReLU and a residual, for every dtype and layout: forward,
 * running statistics, backward, parameters. Prints a hash of each result's bits.
 *
 *   step serial | threads | own
 */
#include "own_executor.h"

static void show(const char *dtype, const char *layout, const char *what, const void *p, size_t bytes) {
    printf("%s %s %s %016llx\n", dtype, layout, what, (unsigned long long)hash(p, bytes));
}

static void step(uint32_t dtype, uint32_t layout, const batchnorm_executor *executor) {
    enum { BATCH = 9, CHANNELS = 37, SPATIAL = 401 };
    const size_t n = (size_t)BATCH * CHANNELS * SPATIAL;
    batchnorm_desc d = get_desc(layout, dtype, BATCH, CHANNELS, SPATIAL);
    d.activation = BATCHNORM_RELU;
    d.executor = executor;

    void *x = get_noise(dtype, n, 1), *residual = get_noise(dtype, n, 2), *dy = get_noise(dtype, n, 3);
    const uint32_t parameter = dtype == BATCHNORM_F64 ? BATCHNORM_F64 : BATCHNORM_F32;
    void *gamma = get_noise(parameter, CHANNELS, 4), *beta = get_noise(parameter, CHANNELS, 5);
    void *mean = get_noise(parameter, CHANNELS, 6), *var = get_memory(CHANNELS * sizeof(double));
    for (size_t c = 0; c < CHANNELS; c++) {
        put(parameter, var, c, 1.0f);
    }
    const size_t bytes = n * size_of(dtype), parameters = CHANNELS * size_of_parameter(dtype);
    void *y = get_memory(bytes), *dx = get_memory(bytes), *dresidual = get_memory(bytes);
    void *dgamma = get_memory(parameters), *dbeta = get_memory(parameters);
    batchnorm_moments moments[CHANNELS];
    uint64_t num_batches = 0;
    size_t skipped = 99;

    OK(batchnorm_forward_training(&d, x, residual, gamma, beta, y, moments));
    OK(batchnorm_running_update(dtype, CHANNELS, moments, BATCHNORM_WEIGH_NEW, 0.1, 1, &num_batches, mean,
                                var, &skipped));
    CHECK(num_batches == 1 && skipped == 0);
    OK(batchnorm_backward(&d, x, y, dy, gamma, moments, dx, dresidual, dgamma, dbeta));
    for (size_t c = 0; c < CHANNELS; c++) {
        if (dtype == BATCHNORM_F64) {
            ((double *)gamma)[c] -= 0.125 * ((double *)dgamma)[c];
            ((double *)beta)[c] -= 0.125 * ((double *)dbeta)[c];
        } else {
            ((float *)gamma)[c] -= 0.125f * ((float *)dgamma)[c];
            ((float *)beta)[c] -= 0.125f * ((float *)dbeta)[c];
        }
    }

    const char *t = DTYPES[dtype], *l = layout == BATCHNORM_NCHW ? "nchw" : "nhwc";
    show(t, l, "y", y, bytes);
    show(t, l, "moments", moments, sizeof moments);
    show(t, l, "running_mean", mean, parameters);
    show(t, l, "running_var", var, parameters);
    show(t, l, "dx", dx, bytes);
    show(t, l, "dresidual", dresidual, bytes);
    show(t, l, "gamma", gamma, parameters);
    show(t, l, "beta", beta, parameters);
    free(x), free(residual), free(dy), free(gamma), free(beta), free(mean), free(var);
    free(y), free(dx), free(dresidual), free(dgamma), free(dbeta);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    own_context context = {0, NULL};
    const batchnorm_executor own = {own_run, &context, 3};
    const batchnorm_executor *threads = NULL, *executor = NULL;
    if (strcmp(argv[1], "threads") == 0) {
        executor = threads = batchnorm_threads_new(2);
        CHECK(threads != NULL && threads->width == 2);
    } else if (strcmp(argv[1], "own") == 0) {
        executor = &own;
    }
    for (uint32_t dtype = BATCHNORM_F32; dtype <= BATCHNORM_BF16; dtype++) {
        step(dtype, BATCHNORM_NCHW, executor);
        step(dtype, BATCHNORM_NHWC, executor);
    }
    CHECK(executor != &own || context.calls > 0);
    batchnorm_threads_free(threads);
    return 0;
}
