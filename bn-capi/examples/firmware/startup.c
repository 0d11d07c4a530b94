/* Cortex-M4F: vectors, reset, and an emulator's console (semihosting). */
#include <stdint.h>

extern uint32_t stack_top[], data_from[], data_start[], data_end[], bss_start[], bss_end[];
int main(void);
void reset(void);

static int semihosting(int operation, const void *argument) {
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void print(const char *text) { semihosting(4 /* SYS_WRITE0 */, text); }

static void fault(void) {
    print("fault\n");
    semihosting(0x18 /* SYS_EXIT */, (const void *)0x20023);
    for (;;) {}
}

void reset(void) {
    /* CPACR: the FPU, before any function may push its registers. */
    *(volatile uint32_t *)0xe000ed88 |= 0xf00000;
    __asm__ volatile("dsb\n isb");
    for (uint32_t *from = data_from, *to = data_start; to < data_end;) *to++ = *from++;
    for (uint32_t *to = bss_start; to < bss_end;) *to++ = 0;
    semihosting(0x18, (const void *)(intptr_t)(main() == 0 ? 0x20026 : 0x20023));
    fault();
}

typedef void (*handler)(void);
struct vectors {
    uint32_t *stack;
    handler handlers[15];
};

__attribute__((section(".vectors"), used)) static const struct vectors vectors = {
    stack_top,
    {reset, fault, fault, fault, fault, fault, 0, 0, 0, 0, fault, fault, 0, fault, fault},
};
