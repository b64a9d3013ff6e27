/* A keep-alive connection to an HTTP server; an answer must have a Content-Length. Its status is HTTP's. */

#define _GNU_SOURCE
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ANSWER_MAX = 1 << 20 };

struct exchange {
    size_t written; /* of the request */
    size_t length;  /* of what came */
    size_t whole;   /* the answer's length, 0 while unknown */
    char answer[ANSWER_MAX];
};

static char *request;
static size_t request_length;
static int port;

void wire_setup(const char *where, const char *request_path) {
    port = atoi(where);
    request = slurp(request_path, &request_length);
}

void wire_make(struct connection *one) {
    if (!(one->own = malloc(sizeof(struct exchange)))) fail("memory");
}

int wire_open(struct connection *one) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    one->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (one->fd < 0) fail("socket");
    if (connect(one->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) fail("connect");
    int on = 1;
    setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return 0;
}

void wire_begin(struct connection *one) {
    struct exchange *own = one->own;
    own->written = own->length = own->whole = 0;
}

int wire_push(struct connection *one) {
    struct exchange *own = one->own;
    while (own->written < request_length) {
        ssize_t sent = send(one->fd, request + own->written, request_length - own->written, MSG_NOSIGNAL);
        if (sent < 0) return errno == EAGAIN ? 1 : -1;
        own->written += (size_t)sent;
    }
    return 0;
}

static void measure(struct exchange *own) {
    char *end = memmem(own->answer, own->length, "\r\n\r\n", 4);
    if (!end) return;
    size_t head = (size_t)(end - own->answer) + 4;
    for (char *line = own->answer; line < end; line = (char *)memchr(line, '\n', (size_t)(end + 2 - line)) + 1)
        if (!strncasecmp(line, "content-length:", 15)) own->whole = head + strtoul(line + 15, NULL, 10);
    if (!own->whole) { fprintf(stderr, "an answer without Content-Length\n"); exit(3); }
    if (own->whole > ANSWER_MAX) { fprintf(stderr, "an answer above 1 MiB\n"); exit(3); }
}

int64_t wire_pull(struct connection *one) {
    struct exchange *own = one->own;
    ssize_t came = recv(one->fd, own->answer + own->length, ANSWER_MAX - own->length, 0);
    if (came < 0 && errno == EAGAIN) return 0;
    if (came <= 0 || one->at < 0) return -1;
    own->length += (size_t)came;
    if (!own->whole) measure(own);
    return own->whole && own->length >= own->whole ? strtol(own->answer + 9, NULL, 10) : 0;
}

void wire_close(struct connection *one) { close(one->fd); }
