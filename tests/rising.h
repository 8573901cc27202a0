/* rising.h - an allocator whose pieces lie one behind the other, at ascending addresses. */
#ifndef RISING_H
#define RISING_H

#include "test.h"

typedef struct rising { unsigned char *at, *end; } rising;

static inline void *rising_alloc(void *user, size_t bytes)
{
    rising *r = (rising *)user;
    unsigned char *memory = r->at;
    if (bytes > (size_t)(r->end - memory)) return NULL;
    r->at += (bytes + 63) & ~(size_t)63;
    return memory;
}

/* Takes memory from there, and gives none back. */
static inline xg_config rising_config(rising *memory)
{
    xg_config config;
    memset(&config, 0, sizeof config);
    config.alloc = rising_alloc;
    config.memory_user = memory;
    return config;
}

#endif
