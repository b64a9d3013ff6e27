/* Between the loop (load.c) and what a connection is (http.c, farm.c). */

#ifndef LOAD_H
#define LOAD_H

#include <stddef.h>
#include <stdint.h>

struct connection {
    int fd;
    int64_t at;              /* index of the request under way, -1 at rest */
    int dialling;            /* connect() has not ended yet */
    int kept;                /* answered, but it may not ask again yet */
    struct connection *next; /* in the queue of those at rest */
    void *own;               /* the wire's */
};

/* Of the loop. `fail` ends the process; `slurp` reads a whole file. */
void fail(const char *what);
int64_t now_ns(void);
char *slurp(const char *path, size_t *length);

/* Of the wire. setup: once. make: its own part of a connection. open: sets `fd`, not blocking; whether it is connected
   already. begin: the next request is to be pushed. push: 0 when all of it is sent, 1 when the rest has to wait, -1 when
   the connection is broken. pull: the status of a whole answer, 0 when there is none yet, -1 when it is broken. */
void wire_setup(const char *where, const char *request_path);
void wire_make(struct connection *one);
int wire_open(struct connection *one);
void wire_begin(struct connection *one);
int wire_push(struct connection *one);
int64_t wire_pull(struct connection *one);
void wire_close(struct connection *one);

#endif
