/* A client of the farm on its direct lane, one session a connection, with one slot and one request in flight.

   The request file begins with a line "MODEL SLOT_BYTES DEADLINE_NS ROWS OUTPUT_BYTES"; the rest are the inputs as they
   lie in a slot. They are copied in for each request and the outputs copied out, as any service has to. docs/PROTOCOL.md
   says what goes over the socket. Status 200: the model answered; else 1000 * ending + reason, of the farm's reply. */

#define _GNU_SOURCE
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

enum { PROTOCOL = 1, FRAME_MAX = 128 * 1024, MODEL_TAG = 4, REPLIES_TAG = 32, RELEASE_TAG = 33, ATTACH_S = 20 };
enum { MODEL_ANSWERED = 200, SUBMIT_MAX = 64 };

struct session {
    uint64_t epoch, request_id;
    uint16_t model;
    unsigned char *in, *out;
    unsigned char submit[SUBMIT_MAX];
    size_t submit_length;
};

static const char *attach_path;
static char model_name[256];
static unsigned char *inputs, *outputs;
static size_t inputs_bytes, outputs_bytes, slot_bytes;
static int64_t deadline_ns;
static unsigned rows;

static void refuse(const char *why) { fprintf(stderr, "%s\n", why); exit(3); }

void wire_setup(const char *where, const char *request_path) {
    size_t length;
    char *file = slurp(request_path, &length), *line_end = memchr(file, '\n', length);
    if (!line_end) refuse("the request has no first line");
    *line_end = 0;
    if (sscanf(file, "%255s %zu %ld %u %zu", model_name, &slot_bytes, &deadline_ns, &rows, &outputs_bytes) != 5)
        refuse("the request's first line is not MODEL SLOT_BYTES DEADLINE_NS ROWS OUTPUT_BYTES");
    inputs = (unsigned char *)line_end + 1;
    inputs_bytes = length - (size_t)(line_end + 1 - file);
    if (inputs_bytes > slot_bytes || outputs_bytes > slot_bytes) refuse("inputs or outputs do not fit a slot");
    if (!(outputs = malloc(outputs_bytes + 1))) fail("memory");
    attach_path = where;
}

void wire_make(struct connection *one) {
    if (!(one->own = calloc(1, sizeof(struct session)))) fail("memory");
}

/* msgpack, as far as the farm's frames need it. A reader that meets something else ends at `end`. */

struct reader { const unsigned char *at, *end; };

static uint64_t big_endian(struct reader *from, int bytes) {
    uint64_t value = 0;
    if (from->end - from->at < bytes) { from->at = from->end; return 0; }
    while (bytes--) value = value << 8 | *from->at++;
    return value;
}

static uint64_t whole(struct reader *from) {
    uint64_t first = big_endian(from, 1);
    if (first < 0x80) return first;
    if (first >= 0xcc && first <= 0xcf) return big_endian(from, 1 << (first - 0xcc));
    from->at = from->end;
    return 0;
}

static uint64_t length_of(struct reader *from, int array) {
    uint64_t first = big_endian(from, 1);
    if (array && (first & 0xf0) == 0x90) return first & 0x0f;
    if (array && (first == 0xdc || first == 0xdd)) return big_endian(from, first == 0xdc ? 2 : 4);
    if (!array && (first & 0xe0) == 0xa0) return first & 0x1f;
    if (!array && first >= 0xd9 && first <= 0xdb) return big_endian(from, 1 << (first - 0xd9));
    if (!array && first >= 0xc4 && first <= 0xc6) return big_endian(from, 1 << (first - 0xc4));
    from->at = from->end;
    return 0;
}

static const unsigned char *text(struct reader *from, uint64_t *length) {
    *length = length_of(from, 0);
    const unsigned char *begin = from->at;
    if ((uint64_t)(from->end - from->at) < *length) { from->at = from->end; *length = 0; return begin; }
    from->at += *length;
    return begin;
}

static unsigned char *put(unsigned char *at, uint64_t value, int bytes, unsigned char code) {
    *at++ = code;
    for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8) *at++ = (unsigned char)(value >> shift);
    return at;
}

static size_t receive(int fd, unsigned char *frame, int *descriptors, int count) {
    char control[CMSG_SPACE(2 * sizeof(int))];
    struct iovec part = {frame, FRAME_MAX};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t came = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
    if (came <= 0) refuse("the farm did not answer attach");
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (count) {
        if (!head || head->cmsg_len != CMSG_LEN(2 * sizeof(int))) refuse("attach was refused: no descriptors came");
        memcpy(descriptors, CMSG_DATA(head), 2 * sizeof(int));
    }
    return (size_t)came;
}

/* Attach is waited for: it is done before the load begins. */
int wire_open(struct connection *one) {
    static unsigned char frame[FRAME_MAX];
    struct session *own = one->own;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, attach_path, sizeof address.sun_path - 1);
    one->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (one->fd < 0 || connect(one->fd, (struct sockaddr *)&address, sizeof address)) fail(attach_path);
    struct timeval limit = {ATTACH_S, 0};
    setsockopt(one->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    unsigned char attach[32] = {0x96, 1, PROTOCOL, 1}, *at = put(attach + 4, slot_bytes, 4, 0xce);
    memcpy(at, "\xa6" "direct" "\xa4" "load", 12);
    if (send(one->fd, attach, (size_t)(at + 12 - attach), MSG_NOSIGNAL) < 0) fail("attach");
    int descriptors[2];
    struct reader from = {frame, frame + receive(one->fd, frame, descriptors, 2)};
    uint64_t length;
    length_of(&from, 1);
    whole(&from), whole(&from), whole(&from); /* tag, protocol, session */
    own->epoch = whole(&from);
    text(&from, &length);                     /* token */
    whole(&from), whole(&from);               /* slots */
    text(&from, &length), text(&from, &length); /* lane, path */
    int found = 0;
    for (uint64_t left = whole(&from); left; left--) {
        struct reader model = {frame, frame + receive(one->fd, frame, NULL, 0)};
        length_of(&model, 1);
        if (whole(&model) != MODEL_TAG) refuse("something else than a model came after attach");
        uint64_t index = whole(&model);
        const unsigned char *name = text(&model, &length);
        if (length == strlen(model_name) && !memcmp(name, model_name, length)) { own->model = (uint16_t)index; found = 1; }
    }
    if (!found) refuse("the farm has no model of that name");
    own->in = mmap(NULL, slot_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, descriptors[0], 0);
    own->out = mmap(NULL, slot_bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, descriptors[1], 0);
    if (own->in == MAP_FAILED || own->out == MAP_FAILED) fail("mmap");
    close(descriptors[0]), close(descriptors[1]);
    one->kept = 0;
    return 1;
}

void wire_begin(struct connection *one) {
    struct session *own = one->own;
    memcpy(own->in, inputs, inputs_bytes);
    unsigned char *at = own->submit;
    *at++ = 0x93;                                      /* Submit: tag, epoch, requests */
    *at++ = 17;
    at = put(at, own->epoch, 8, 0xcf);
    *at++ = 0x91;
    *at++ = 0x96;                                      /* one Request: what has a default is left out */
    at = put(at, ++own->request_id, 8, 0xcf);
    at = put(at, own->model, 2, 0xcd);
    at = put(at, (uint64_t)(now_ns() + deadline_ns), 8, 0xcf);
    *at++ = 0;                                         /* slot */
    *at++ = 1;                                         /* slot_count */
    at = put(at, rows, 4, 0xce);
    own->submit_length = (size_t)(at - own->submit);
}

int wire_push(struct connection *one) {
    struct session *own = one->own;
    if (send(one->fd, own->submit, own->submit_length, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return 0;
    return errno == EAGAIN ? 1 : -1;
}

int64_t wire_pull(struct connection *one) {
    static unsigned char frame[FRAME_MAX];
    struct session *own = one->own;
    ssize_t came = recv(one->fd, frame, sizeof frame, MSG_DONTWAIT);
    if (came < 0 && errno == EAGAIN) return 0;
    if (came <= 0) return -1;
    struct reader from = {frame, frame + came};
    length_of(&from, 1);
    uint64_t tag = whole(&from);
    if (tag == MODEL_TAG) return 0;
    if (tag == RELEASE_TAG) { one->kept = 0; return 0; }
    if (tag != REPLIES_TAG || length_of(&from, 1) != 1) return -1;
    uint64_t fields = length_of(&from, 1), request_id = whole(&from), ending = whole(&from);
    uint64_t reason = fields > 2 ? whole(&from) : 0;
    if (request_id != own->request_id) return -1;
    one->kept = fields > 3 && big_endian(&from, 1) == 0xc3;
    if (ending) return (int64_t)(1000 * ending + reason);
    memcpy(outputs, own->out, outputs_bytes);
    return MODEL_ANSWERED;
}

void wire_close(struct connection *one) {
    struct session *own = one->own;
    munmap(own->in, slot_bytes);
    munmap(own->out, slot_bytes);
    close(one->fd);
}
