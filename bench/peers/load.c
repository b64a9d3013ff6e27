/* Load for a server, lean enough to show it at its best: one thread, connections that are kept, one fixed request.

   load WHERE CONNECTIONS CONNECTIONS_MAX REQUEST_FILE TAPE_FILE SECONDS_NS GRACE_NS [DUE_FILE]

   What a connection is stands in http.c (WHERE is a port of this host) and farm.c (WHERE is an attach socket).

   It connects, prints "ready", reads from standard input the moment (CLOCK_MONOTONIC ns) at which the measured part
   begins, and writes records {due, taken, sent, done, status} of int64 to the tape. Without DUE_FILE a closed loop: each
   connection asks again as soon as its answer is whole. With it an open loop: int64 moments relative to the beginning;
   what is due goes out on the connection that has rested longest (so that servers which share a listening socket are
   asked evenly); with none at rest a new one is opened up to CONNECTIONS_MAX; beyond that a request waits here, and its
   latency still counts from when it was due.

   `taken` is when this process came to a due request: taken - due is its own delay, sent - taken the server's doing.
   Status 0: never ended; -1: the connection broke; else what the wire says.

   Limits: one thread, so one core. Seen on two cores that it shared with an HTTP server: 4.7 us of CPU a request in a
   closed loop of 40 (38,000/s), 19 us in an open loop of 16,000/s; there it came to a request 0.03 ms after it was due
   at p50, 0.5 ms at p99, which is the wait for a CPU. One request is asked over and over. */

#define _GNU_SOURCE
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BROKEN = -1, EVENTS = 256, TURN = 256, DIALLING_MAX = 16 };

struct record { int64_t due, taken, sent, done, status; };

static struct record *tape;
static int64_t tape_length, tape_room;
static struct connection *rest_first, *rest_last;
static int poller, connections, connections_max, dialling, open_loop;
static int64_t under_way, end_ns;

void fail(const char *what) { perror(what); exit(2); }

int64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

char *slurp(const char *path, size_t *length) {
    FILE *file = fopen(path, "rb");
    if (!file) fail(path);
    fseek(file, 0, SEEK_END);
    *length = (size_t)ftell(file);
    rewind(file);
    char *bytes = malloc(*length + 1);
    if (!bytes || fread(bytes, 1, *length, file) != *length) fail(path);
    fclose(file);
    return bytes;
}

static void to_rest(struct connection *one) {
    one->at = -1;
    one->next = NULL;
    if (rest_last) rest_last->next = one; else rest_first = one;
    rest_last = one;
}

static void watch(struct connection *one, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = one};
    if (epoll_ctl(poller, operation, one->fd, &event)) fail("epoll_ctl");
}

/* Never waits for an HTTP server: one that is too busy to accept must not hold up requests on other connections. */
static void dial(struct connection *one) {
    one->at = -1;
    one->dialling = !wire_open(one);
    watch(one, EPOLL_CTL_ADD, one->dialling ? EPOLLIN | EPOLLOUT : EPOLLIN);
    if (one->dialling) dialling++; else to_rest(one);
}

static void another(void) {
    struct connection *one = calloc(1, sizeof *one);
    if (!one) fail("memory");
    wire_make(one);
    connections++;
    dial(one);
}

static void connected(struct connection *one) {
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(one->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    errno = error;
    if (error) fail("connect");
    watch(one, EPOLL_CTL_MOD, EPOLLIN);
    one->dialling = 0;
    dialling--;
    to_rest(one);
}

static void ended(struct connection *one, int64_t status) {
    tape[one->at].done = now_ns();
    tape[one->at].status = status;
    under_way--;
    one->at = -1;
}

static void broke(struct connection *one) {
    struct connection **at = &rest_first;
    rest_last = NULL;
    while (*at)
        if (*at == one) *at = one->next;
        else { rest_last = *at; at = &(*at)->next; }
    wire_close(one);
    one->fd = -1;
    if (one->at >= 0) ended(one, BROKEN);
    if (now_ns() < end_ns) dial(one);
}

static void push(struct connection *one) {
    int left = wire_push(one);
    if (left < 0) broke(one);
    else if (left) watch(one, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
}

static void begin(struct connection *one) {
    under_way++;
    tape[one->at].sent = now_ns();
    wire_begin(one);
    push(one);
}

static void pull(struct connection *one) {
    int waits = one->at >= 0, kept = one->kept;
    int64_t status = wire_pull(one);
    if (status < 0 || (status && !waits)) { broke(one); return; }
    if (status) ended(one, status);
    if ((status || kept) && !one->kept) to_rest(one);
}

static int64_t taken(int64_t due, int64_t now) {
    if (tape_length == tape_room) {
        tape_room *= 2;
        tape = realloc(tape, (size_t)tape_room * sizeof *tape);
        if (!tape) fail("memory");
    }
    tape[tape_length] = (struct record){.due = due, .taken = now};
    return tape_length++;
}

static struct connection *from_rest(void) {
    struct connection *one = rest_first;
    if (one) {
        rest_first = one->next;
        if (!rest_first) rest_last = NULL;
    } else if (open_loop && connections < connections_max && dialling < DIALLING_MAX)
        another();
    return one;
}

int main(int count, char **words) {
    if (count < 8) return 64;
    int first_connections = atoi(words[2]);
    connections_max = atoi(words[3]);
    wire_setup(words[1], words[4]);
    int64_t seconds_ns = atoll(words[6]), grace_ns = atoll(words[7]);
    int64_t *due = NULL, due_count = 0;
    if (count > 8) {
        size_t bytes;
        due = (int64_t *)(void *)slurp(words[8], &bytes);
        due_count = (int64_t)(bytes / sizeof *due);
        open_loop = 1;
    }
    tape_room = open_loop ? due_count + 1 : 1 << 20;
    tape = malloc((size_t)tape_room * sizeof *tape);
    poller = epoll_create1(0);
    prctl(PR_SET_TIMERSLACK, 1UL);
    struct epoll_event events[EVENTS];
    for (int n = 0; n < first_connections || dialling; ) {
        if (n < first_connections && dialling < DIALLING_MAX) { another(); n++; continue; }
        int ready = epoll_wait(poller, events, EVENTS, 10000);
        if (ready <= 0) fail("connect");
        for (int e = 0; e < ready; e++) connected(events[e].data.ptr);
    }

    printf("ready\n");
    fflush(stdout);
    long long begin_ns;
    if (scanf("%lld", &begin_ns) != 1) return 65;
    end_ns = begin_ns + seconds_ns;
    struct rusage before, after;
    int begun = 0;
    int64_t next_due = 0, next_send = 0, last_ns = end_ns + grace_ns;

    for (;;) {
        int64_t now = now_ns();
        if (!begun && now >= begin_ns) { getrusage(RUSAGE_SELF, &before); begun = 1; }
        if (open_loop) {
            while (next_due < due_count && begin_ns + due[next_due] <= now) { taken(begin_ns + due[next_due], now); next_due++; }
            struct connection *one;
            for (int n = 0; n < TURN && next_send < tape_length && (one = from_rest()); n++) {
                one->at = next_send++;
                begin(one);
            }
            if (next_due == due_count && next_send == tape_length && !under_way) break;
        } else {
            struct connection *one, *last = rest_last;
            while (now < end_ns && (one = from_rest())) {
                one->at = taken(now, now);
                begin(one);
                tape[one->at].due = tape[one->at].taken = tape[one->at].sent;
                if (one == last) break;
            }
            if (now >= end_ns && !under_way) break;
        }
        now = now_ns();
        if (now >= last_ns) break;
        int64_t wake = open_loop && next_due < due_count ? begin_ns + due[next_due] : last_ns;
        if (!begun && wake > begin_ns) wake = begin_ns;
        if (open_loop && next_send < tape_length && rest_first) wake = now;
        struct timespec wait = {0, 0};
        if (wake > now) wait = (struct timespec){(wake - now) / 1000000000LL, (wake - now) % 1000000000LL};
        int ready = epoll_pwait2(poller, events, EVENTS, &wait, NULL);
        for (int n = 0; n < ready; n++) {
            struct connection *one = events[n].data.ptr;
            if (one->fd < 0) continue;
            if (one->dialling) { connected(one); continue; }
            if (events[n].events & EPOLLOUT) {
                watch(one, EPOLL_CTL_MOD, EPOLLIN);
                push(one);
                if (one->fd < 0 || one->dialling) continue;
            }
            if (events[n].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) pull(one);
        }
    }

    getrusage(RUSAGE_SELF, &after);
    FILE *file = fopen(words[5], "wb");
    if (!file || fwrite(tape, sizeof *tape, (size_t)tape_length, file) != (size_t)tape_length || fclose(file)) fail(words[5]);
    printf("%.6f %d\n", begun ? (double)(after.ru_utime.tv_sec - before.ru_utime.tv_sec + after.ru_stime.tv_sec - before.ru_stime.tv_sec)
        + 1e-6 * (double)(after.ru_utime.tv_usec - before.ru_utime.tv_usec + after.ru_stime.tv_usec - before.ru_stime.tv_usec) : 0.0,
        connections);
    return 0;
}
