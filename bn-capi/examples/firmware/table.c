/*
 * On the host: batch normalization's constants, for the flash of a controller.
 *
 *   cc -std=c99 table.c $(pkg-config --cflags --libs batchnorm) -o table && ./table > table.h
 */
#include "net.h"
#include <stdio.h>

int main(void) {
    float gamma[CHANNELS], beta[CHANNELS], running_mean[CHANNELS], running_var[CHANNELS];
    batchnorm_prepared table[CHANNELS];
    batchnorm_desc desc = describe();
    trained(gamma, beta, running_mean, running_var);
    batchnorm_status status = batchnorm_prepare(&desc, gamma, beta, running_mean, running_var, table);
    if (status != BATCHNORM_OK) {
        fprintf(stderr, "%s\n", batchnorm_status_message(status));
        return 1;
    }
    puts("/* By table.c: mean, scale and shift of each channel. */");
    puts("static const batchnorm_prepared TABLE[CHANNELS] = {");
    for (int c = 0; c < CHANNELS; c++) {
        /* Hexadecimal: every bit. */
        printf("    {%af, %af, %af},\n", table[c].mean, table[c].scale, table[c].shift);
    }
    puts("};");
    return 0;
}
