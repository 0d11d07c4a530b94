/*
 * Loads the library (given by path), starts threads, runs, ends the threads, unloads; again and again.
 */
#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <dlfcn.h>
#include <time.h>

#include "check.h"

/* ISO C has no conversion from objects to functions; POSIX wants this one. */
#define SYMBOL(library, f)                                \
    void *f##_symbol = dlsym(library, "batchnorm_" #f);   \
    CHECK(f##_symbol != NULL);                            \
    memcpy(&f, &f##_symbol, sizeof f)

static size_t count_threads(void) {
    size_t n = 0;
    DIR *tasks = opendir("/proc/self/task");
    CHECK(tasks != NULL);
    for (const struct dirent *e; (e = readdir(tasks)) != NULL;) {
        n += e->d_name[0] != '.';
    }
    closedir(tasks);
    return n;
}

/* A thread that has been joined is counted until the kernel has cleared it away. */
static int one_thread_soon(void) {
    for (int i = 0; i < 2000; i++) {
        if (count_threads() == 1) {
            return 1;
        }
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    return 0;
}

static size_t count_pages(void) {
    unsigned long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    CHECK(f != NULL && fscanf(f, "%*u %lu", &pages) == 1);
    fclose(f);
    return pages;
}

enum { BATCH = 8, CHANNELS = 8, SPATIAL = 2049, N = BATCH * CHANNELS * SPATIAL };

int main(int argc, char **argv) {
    static float y[N];
    CHECK(argc == 2);
    float *x = get_noise(BATCHNORM_F32, N, 1);
    uint64_t expected = 0;
    size_t pages = 0;
    for (int i = 0; i < 100; i++) {
        void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
        CHECK(library != NULL);
        const batchnorm_executor *(*threads_new)(size_t);
        void (*threads_free)(const batchnorm_executor *);
        batchnorm_status (*forward_training)(const batchnorm_desc *, const void *, const void *, const void *,
                                             const void *, void *, batchnorm_moments *);
        SYMBOL(library, threads_new);
        SYMBOL(library, threads_free);
        SYMBOL(library, forward_training);

        batchnorm_moments moments[CHANNELS];
        batchnorm_desc d = get_desc(BATCHNORM_NCHW, BATCHNORM_F32, BATCH, CHANNELS, SPATIAL);
        d.executor = threads_new(3);
        CHECK(d.executor != NULL && count_threads() == 4);
        memset(y, 0, sizeof y);
        CHECK(forward_training(&d, x, NULL, NULL, NULL, y, moments) == BATCHNORM_OK);
        if (i == 0) {
            expected = hash(y, sizeof y);
        }
        CHECK(hash(y, sizeof y) == expected);
        threads_free(d.executor);
        CHECK(one_thread_soon());
        CHECK(dlclose(library) == 0);
        if (i == 20) {
            pages = count_pages();
        }
    }
    /* Nothing piles up: at most a megabyte of a hundred that 80 pools' stacks and queues would be. */
    CHECK(count_pages() < pages + 256);
    free(x);
    return 0;
}
