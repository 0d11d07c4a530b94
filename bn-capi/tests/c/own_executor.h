/* An executor as an engine would bring it: a thread for each ticket, in an environment of its own. */
#ifndef OWN_EXECUTOR_H
#define OWN_EXECUTOR_H

#include <pthread.h>

#include "check.h"

typedef struct {
    void (*task)(void *arg, size_t ticket);
    void *arg;
    size_t ticket;
    void (*prepare)(void);
} own_ticket;

static void *own_thread(void *p) {
    own_ticket *t = p;
    if (t->prepare) {
        t->prepare();
    }
    t->task(t->arg, t->ticket);
    return NULL;
}

/* The context counts its calls; prepare is run on each thread. */
typedef struct {
    size_t calls;
    void (*prepare)(void);
} own_context;

static void own_run(void *ctx, size_t tickets, void (*task)(void *arg, size_t ticket), void *arg) {
    own_context *context = ctx;
    pthread_t threads[64];
    own_ticket t[64];
    CHECK(tickets <= 64);
    context->calls++;
    for (size_t i = 0; i < tickets; i++) {
        t[i].task = task;
        t[i].arg = arg;
        t[i].ticket = i;
        t[i].prepare = context->prepare;
        CHECK(pthread_create(&threads[i], NULL, own_thread, &t[i]) == 0);
    }
    for (size_t i = 0; i < tickets; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
}

#endif
