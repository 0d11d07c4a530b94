/* No memory for the workspace, and BN_ISA naming nothing: refused, and the process lives on. */
#define _GNU_SOURCE
#include <math.h>

#include "check.h"

/* glibc's malloc by its other name, unless it is to fail. */
void *__libc_malloc(size_t size);
static int failing;

void *malloc(size_t size) {
    return failing ? NULL : __libc_malloc(size);
}

int main(void) {
    static float x[64], y[64];
    batchnorm_moments moments[4];
    uint64_t workspace[1024];
    batchnorm_desc d = get_desc(BATCHNORM_NHWC, BATCHNORM_F32, 16, 4, 1);
    CHECK(setenv("BN_ISA", "abacus", 1) == 0);
    EXPECT(BATCHNORM_ERROR_ISA, batchnorm_forward_training(&d, x, NULL, NULL, NULL, y, moments));
    CHECK(strcmp(batchnorm_isa_name(BATCHNORM_ISA_DETECT), "unknown") == 0);
    CHECK(batchnorm_conformance_hash(BATCHNORM_ISA_DETECT) == 0);
    d.isa = BATCHNORM_ISA_PORTABLE;
    OK(batchnorm_forward_training(&d, x, NULL, NULL, NULL, y, moments));

    y[0] = 7;
    failing = 1;
    batchnorm_status without = batchnorm_forward_training(&d, x, NULL, NULL, NULL, y, moments);
    d.workspace = workspace, d.workspace_bytes = sizeof workspace;
    const float untouched = y[0];
    batchnorm_status with = batchnorm_forward_training(&d, x, NULL, NULL, NULL, y, moments);
    failing = 0;
    EXPECT(BATCHNORM_ERROR_MEMORY, without);
    EXPECT(BATCHNORM_OK, with);
    CHECK(untouched == 7 && y[0] == 0);
    return 0;
}
