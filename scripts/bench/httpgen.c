/* httpgen: plays the clients of a server that streams tokens over HTTP, and checks every byte of what they get.
 *
 * Keeps STREAMS requests open until TOTAL have run, each on a connection of its own, on one thread and one epoll. A
 * response is HTTP/1.1 and chunked. Its body is one event for each token, numbered from 0, and then [DONE]. How an
 * event looks is given by a template: `*` stands for what differs from stream to stream (an id, a time) and stays the
 * same within one, `#` for the token's number. What stands behind the number of the last token is given by itself.
 *
 * usage: httpgen -p PORT -b FILE -e FILE -l FILE -m TOKENS [-c STREAMS] [-n TOTAL] [-r RATE] [-i NS] [-s S]
 *   -b FILE   the whole request, head and body
 *   -e FILE   the template of an event
 *   -l FILE   what stands behind the last token's number, up to and with what ends the body
 *   -r RATE   start at most RATE streams a second
 *   -i NS     pace of the tokens: how late and how early they came is told against it
 *   -s S      give up after silence this long
 *
 * Four times a second a line `progress TOKENS OPEN` is written, at the end one line of JSON with all figures. Times are
 * in nanoseconds, from before connect().
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_MAX = 2048, LEARNT_MAX = 512, EVENTS_MAX = 512, RECEIVE_MAX = 1 << 18, STARTS_PER_TURN = 32 };
enum { FAULTS_MAX = 20, SHOWN_MAX = 120, IDLE_WAIT_MS = 50 };
enum { PROGRESS_NS = 250000000 };

typedef enum {
    COMPLETE, CONNECT_FAILED, REQUEST_FAILED, RESET, EMPTY, HEAD_TRUNCATED, REFUSED, NOT_CHUNKED, WRONG_BYTES, TRUNCATED,
    WRONG_COUNT, AFTER_END, STALLED, OUTCOMES
} Outcome;
static const char *const outcome_names[OUTCOMES] = {
    "complete", "connect_failed", "request_failed", "reset", "empty", "head_truncated", "refused", "not_chunked",
    "wrong_bytes", "truncated", "wrong_count", "after_end", "stalled"};

/* Where in the framing of chunks a stream is, and where in its body. */
typedef enum { SIZE, SIZE_LF, DATA, DATA_CR, DATA_LF, LAST_CR, LAST_LF, ENDED } Framing;
typedef enum { LEARNING, BEGINNING, NUMBER, REST, TAIL, OVER } Part;

typedef struct {
    int fd, used, status, closes, chunked, head_bytes, head_done;
    Framing framing;
    int64_t chunk_left, size_digits;
    Part part;
    long at;                        /* how much of the part has come */
    char learnt[LEARNT_MAX]; long learnt_bytes; /* an event up to its number, as this stream has it */
    char digits[16]; int digit_count;
    int64_t number, tokens, bytes, body_bytes, differs_at;
    int64_t started_ns, first_ns, last_ns;
    char shown[SHOWN_MAX]; long shown_bytes; /* what came where it was wrong, or the body of a refusal */
    char head[HEAD_MAX];
} Stream;

typedef struct { const char *bytes; long count; } Text;
typedef struct { int64_t number; Outcome outcome; int error_number; Stream state; } Fault;

static struct { int port, streams; int64_t total, tokens, interval_ns; double rate, stall_s; } asked = {
    .streams = 1, .total = 1, .stall_s = 60};
static Text request, before, middle, rest, tail; /* an event: before, what is learnt, middle, the number, rest */

static int epoll_fd;
static Stream *streams;
static int *spare, spare_count;
static char buffer[RECEIVE_MAX];
static int64_t started, finished, open_count, open_max, tokens, bytes, receives, late_max, early_max;
static int64_t outcomes[OUTCOMES], statuses[1000];
static Fault faults[FAULTS_MAX];
static int fault_count;
static int64_t *first_token, *whole, *per_second; /* of complete streams */
static int64_t complete_count, rate_count;

static int64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static Text file_text(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) { perror(path); exit(2); }
    char *text = malloc(1 << 20);
    Text found = {text, (long)fread(text, 1, 1 << 20, file)};
    fclose(file);
    return found;
}

static void read_template(const char *path) {
    Text whole_event = file_text(path);
    const char *star = memchr(whole_event.bytes, '*', whole_event.count);
    const char *hash = star ? memchr(star, '#', whole_event.count - (star - whole_event.bytes)) : NULL;
    if (!hash || hash - star < 2) { fprintf(stderr, "%s: an event has a * and, behind text, a #\n", path); exit(2); }
    before = (Text){whole_event.bytes, star - whole_event.bytes};
    middle = (Text){star + 1, hash - star - 1};
    rest = (Text){hash + 1, whole_event.bytes + whole_event.count - hash - 1};
    if (before.count + middle.count + 128 > LEARNT_MAX) { fprintf(stderr, "%s: too long\n", path); exit(2); }
}

/* ---- what a stream's end means */

static void finish(Stream *s, Outcome outcome, int error_number) {
    int64_t now = clock_ns();
    if (s->status > 0 && s->status < 1000) statuses[s->status]++;
    if (outcome == COMPLETE) {
        first_token[complete_count] = s->first_ns - s->started_ns;
        whole[complete_count++] = now - s->started_ns;
        if (s->last_ns > s->first_ns) per_second[rate_count++] = (s->tokens - 1) * 1e9 / (s->last_ns - s->first_ns);
    } else if (fault_count < FAULTS_MAX) {
        faults[fault_count++] = (Fault){s->number, outcome, error_number, *s};
    }
    outcomes[outcome]++;
    finished++;
    if (s->fd >= 0) { close(s->fd); open_count--; }
    s->used = 0;
    spare[spare_count++] = (int)(s - streams);
}

static Outcome judge(const Stream *s) {
    if (!s->bytes) return EMPTY;
    if (!s->head_done) return HEAD_TRUNCATED;
    if (s->status != 200) return REFUSED;
    if (!s->chunked) return NOT_CHUNKED;
    if (s->differs_at >= 0) return WRONG_BYTES;
    if (s->framing != ENDED) return TRUNCATED;
    if (s->part != OVER || s->tokens != asked.tokens) return WRONG_COUNT;
    return COMPLETE;
}

/* ---- the body: events against the template */

static void differs(Stream *s, const char *piece, long count) {
    s->differs_at = s->body_bytes;
    s->shown_bytes = count < SHOWN_MAX ? count : SHOWN_MAX;
    memcpy(s->shown, piece, s->shown_bytes);
}

static void next_digits(Stream *s) {
    int at = s->digit_count - 1;
    while (at >= 0 && s->digits[at] == '9') s->digits[at--] = '0';
    if (at >= 0) { s->digits[at]++; return; }
    memmove(s->digits + 1, s->digits, s->digit_count++);
    s->digits[0] = '1';
}

static Text part_text(const Stream *s) {
    if (s->part == BEGINNING) return (Text){s->learnt, s->learnt_bytes};
    if (s->part == NUMBER) return (Text){s->digits, s->digit_count};
    return s->part == REST ? rest : tail;
}

static void part_over(Stream *s, int64_t now) {
    s->at = 0;
    if (s->part == BEGINNING) s->part = NUMBER;
    else if (s->part == NUMBER) s->part = s->tokens + 1 < asked.tokens ? REST : TAIL;
    else if (s->part == REST) s->part = BEGINNING;
    else s->part = OVER;
    /* The last token's event is whole at the body's end: its tail holds [DONE], too. */
    if (s->part != BEGINNING && s->part != OVER) return;
    if (!s->tokens++) s->first_ns = now;
    s->last_ns = now;
    tokens++;
    next_digits(s);
}

/* The first event is read byte by byte, up to its number. */
static long learn(Stream *s, const char *piece, long count) {
    for (long index = 0; index < count; index++) {
        long at = s->learnt_bytes;
        if (at == LEARNT_MAX || (at < before.count && piece[index] != before.bytes[at]) || piece[index] == '\n') {
            differs(s, piece + index, count - index);
            return count;
        }
        s->learnt[s->learnt_bytes++] = piece[index];
        at = s->learnt_bytes - middle.count;
        if (at > before.count && !memcmp(s->learnt + at, middle.bytes, middle.count)) {
            s->part = NUMBER;
            return index + 1;
        }
    }
    return count;
}

static void take_body(Stream *s, const char *piece, long count, int64_t now) {
    while (count > 0 && s->differs_at < 0) {
        long taken;
        if (s->part == LEARNING) {
            taken = learn(s, piece, count);
        } else if (s->part == OVER) {
            differs(s, piece, count);
            return;
        } else {
            Text text = part_text(s);
            taken = text.count - s->at < count ? text.count - s->at : count;
            if (memcmp(piece, text.bytes + s->at, taken)) { differs(s, piece, count); return; }
            s->at += taken;
            if (s->at == text.count) part_over(s, now);
        }
        s->body_bytes += taken;
        piece += taken;
        count -= taken;
    }
}

/* ---- framing and head */

static int hex_digit(char byte) {
    if (byte >= '0' && byte <= '9') return byte - '0';
    byte |= 32;
    return byte >= 'a' && byte <= 'f' ? byte - 'a' + 10 : -1;
}

static int framing_byte(Stream *s, char byte) {
    int digit;
    switch (s->framing) {
    case SIZE:
        if (byte == '\r' && s->size_digits) { s->framing = SIZE_LF; return 1; }
        digit = hex_digit(byte);
        if (digit < 0 || s->size_digits++ > 12) return 0;
        s->chunk_left = s->chunk_left * 16 + digit;
        return 1;
    case SIZE_LF: s->framing = s->chunk_left ? DATA : LAST_CR; return byte == '\n';
    case DATA_CR: s->framing = DATA_LF; return byte == '\r';
    case DATA_LF: s->framing = SIZE; s->chunk_left = s->size_digits = 0; return byte == '\n';
    case LAST_CR: s->framing = LAST_LF; return byte == '\r';
    case LAST_LF: s->framing = ENDED; return byte == '\n';
    default: return 0;
    }
}

static void take_chunks(Stream *s, const char *piece, long count, int64_t now) {
    while (count > 0 && s->differs_at < 0) {
        long taken = 1;
        if (s->framing == DATA) {
            taken = s->chunk_left < count ? s->chunk_left : count;
            take_body(s, piece, taken, now);
            s->chunk_left -= taken;
            if (!s->chunk_left) s->framing = DATA_CR;
        } else if (!framing_byte(s, *piece)) {
            differs(s, piece, count);
        }
        piece += taken;
        count -= taken;
    }
}

/* Returns how much of the piece belongs to the head. */
static long take_head(Stream *s, const char *piece, long count) {
    long room = HEAD_MAX - 1 - s->head_bytes, taken = count < room ? count : room, known = s->head_bytes;
    memcpy(s->head + known, piece, taken);
    s->head[known + taken] = 0;
    char *end = strstr(s->head + (known < 3 ? 0 : known - 3), "\r\n\r\n");
    if (!end) { s->head_bytes += taken; return count; }
    end[2] = 0;
    s->head_done = 1;
    s->head_bytes = (int)(end - s->head);
    if (sscanf(s->head, "HTTP/1.1 %3d ", &s->status) != 1) s->status = 999;
    s->chunked = strcasestr(s->head, "\r\ntransfer-encoding: chunked\r\n") != NULL;
    s->closes = strcasestr(s->head, "\r\nconnection: close\r\n") != NULL;
    return end + 4 - s->head - known;
}

static void tell_pace(const Stream *s, int64_t now) {
    int64_t late = now - s->first_ns - (s->tokens - 1) * asked.interval_ns;
    if (late > late_max) late_max = late;
    if (-late > early_max) early_max = -late;
}

static void take(Stream *s, const char *piece, long count, int64_t now) {
    int64_t tokens_before = s->tokens;
    s->bytes += count;
    bytes += count;
    if (!s->head_done) {
        long taken = take_head(s, piece, count);
        piece += taken;
        count -= taken;
    }
    if (!s->head_done || count <= 0) return;
    if (s->status == 200 && s->chunked) {
        if (s->framing == ENDED) { differs(s, piece, count); return; }
        take_chunks(s, piece, count, now);
        if (asked.interval_ns && s->tokens > tokens_before) tell_pace(s, now);
    } else if (!s->shown_bytes) {
        s->shown_bytes = count < SHOWN_MAX ? count : SHOWN_MAX;
        memcpy(s->shown, piece, s->shown_bytes);
    }
}

/* ---- sockets */

static void start_one(void) {
    int index = spare[--spare_count];
    Stream *s = &streams[index];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(asked.port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    memset(s, 0, offsetof(Stream, head));
    s->used = 1;
    s->number = started++;
    s->differs_at = -1;
    s->digits[0] = '0';
    s->digit_count = 1;
    s->started_ns = clock_ns();
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s->fd >= 0 && ++open_count > open_max) open_max = open_count;
    if (s->fd < 0 || connect(s->fd, (void *)&address, sizeof address)) { finish(s, CONNECT_FAILED, errno); return; }
    int on = 1;
    setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (send(s->fd, request.bytes, request.count, MSG_NOSIGNAL) != request.count) {
        finish(s, REQUEST_FAILED, errno);
        return;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = index};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, s->fd, &event);
}

static int start_due(int64_t begin) {
    for (int count = 0; count < STARTS_PER_TURN; count++) {
        if (started >= asked.total || !spare_count) return IDLE_WAIT_MS;
        if (asked.rate > 0 && clock_ns() < begin + started * 1e9 / asked.rate) return 1;
        start_one();
    }
    return 0;
}

static void receive(Stream *s) {
    ssize_t count = recv(s->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (count < 0) {
        if (errno != EAGAIN && errno != EINTR) finish(s, RESET, errno);
        return;
    }
    receives++;
    if (!count) { finish(s, judge(s), 0); return; }
    int was_over = s->framing == ENDED;
    take(s, buffer, count, clock_ns());
    if (s->differs_at >= 0) finish(s, was_over || s->framing == ENDED ? AFTER_END : WRONG_BYTES, 0);
    else if (s->framing == ENDED && !s->closes) finish(s, judge(s), 0);
}

static void run(void) {
    static struct epoll_event ready[EVENTS_MAX];
    int64_t begin = clock_ns(), told = begin, moved = begin;
    while (finished < asked.total) {
        int count = epoll_wait(epoll_fd, ready, EVENTS_MAX, start_due(begin));
        for (int index = 0; index < count; index++)
            if (streams[ready[index].data.u32].used) receive(&streams[ready[index].data.u32]);
        int64_t now = clock_ns();
        if (count > 0) moved = now;
        if (now - told > PROGRESS_NS) {
            told = now;
            printf("progress %ld %ld\n", (long)tokens, (long)open_count);
            fflush(stdout);
        }
        if (now - moved > asked.stall_s * 1e9 && open_count) break;
    }
    int64_t wall = clock_ns() - begin;
    for (int index = 0; index < asked.streams; index++)
        if (streams[index].used) finish(&streams[index], STALLED, 0);
    printf("{\"wall_s\":%.6f,", wall / 1e9);
}

/* ---- figures */

static int by_value(const void *left, const void *right) {
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

static void print_percentiles(const char *name, int64_t *values, int64_t count) {
    static const double percentiles[] = {50, 90, 95, 99, 99.9};
    printf("\"%s\":{\"count\":%ld", name, (long)count);
    if (count) {
        qsort(values, count, sizeof *values, by_value);
        printf(",\"min\":%ld", (long)values[0]);
        for (int index = 0; index < 5; index++) {
            /* The least value that so many do not exceed. */
            int64_t rank = (int64_t)(count * percentiles[index] / 100 + 1 - 1e-9);
            rank = rank < 1 ? 1 : rank > count ? count : rank;
            printf(",\"p%g\":%ld", percentiles[index], (long)values[rank - 1]);
        }
        printf(",\"max\":%ld", (long)values[count - 1]);
    }
    printf("},");
}

static void print_fault(const Fault *fault) {
    const Stream *s = &fault->state;
    printf("{\"stream\":%ld,\"outcome\":\"%s\",\"error_number\":%d,\"status\":%d,", (long)fault->number,
           outcome_names[fault->outcome], fault->error_number, s->status);
    printf("\"message_count\":%ld,\"byte_count\":%ld,\"differs_at\":%ld,\"shown\":\"", (long)s->tokens, (long)s->bytes,
           (long)s->differs_at);
    for (long index = 0; index < s->shown_bytes; index++) {
        unsigned char byte = s->shown[index];
        if (byte >= 32 && byte < 127 && byte != '"' && byte != '\\') putchar(byte);
        else printf("\\u%04x", byte);
    }
    printf("\"}");
}

static void print_figures(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu_s = used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    printf("\"generator_cpu_s\":%.6f,\"streams\":%ld,\"complete\":%ld,\"not_started\":%ld,", cpu_s, (long)finished,
           (long)complete_count, (long)(asked.total - started));
    printf("\"messages\":%ld,\"bytes\":%ld,\"receives\":%ld,", (long)tokens, (long)bytes, (long)receives);
    printf("\"open_max\":%ld,\"late_ns_max\":%ld,\"early_ns_max\":%ld,", (long)open_max, (long)late_max,
           (long)early_max);
    print_percentiles("first_token", first_token, complete_count);
    print_percentiles("whole_stream", whole, complete_count);
    print_percentiles("tokens_per_s", per_second, rate_count);
    const char *comma = "";
    printf("\"outcomes\":{");
    for (int index = 0; index < OUTCOMES; index++) {
        if (!outcomes[index]) continue;
        printf("%s\"%s\":%ld", comma, outcome_names[index], (long)outcomes[index]);
        comma = ",";
    }
    comma = "";
    printf("},\"statuses\":{");
    for (int index = 0; index < 1000; index++) {
        if (!statuses[index]) continue;
        printf("%s\"%d\":%ld", comma, index, (long)statuses[index]);
        comma = ",";
    }
    printf("},\"faults\":[");
    for (int index = 0; index < fault_count; index++) {
        if (index) putchar(',');
        print_fault(&faults[index]);
    }
    printf("]}\n");
}

static void read_arguments(int argc, char **argv) {
    int option;
    while ((option = getopt(argc, argv, "p:b:e:l:m:c:n:r:i:s:")) > 0) switch (option) {
        case 'p': asked.port = atoi(optarg); break;
        case 'b': request = file_text(optarg); break;
        case 'e': read_template(optarg); break;
        case 'l': tail = file_text(optarg); break;
        case 'm': asked.tokens = atol(optarg); break;
        case 'c': asked.streams = atoi(optarg); break;
        case 'n': asked.total = atol(optarg); break;
        case 'r': asked.rate = atof(optarg); break;
        case 'i': asked.interval_ns = atol(optarg); break;
        case 's': asked.stall_s = atof(optarg); break;
        default: exit(2);
    }
    int is_complete = asked.port && request.count && rest.count && tail.count;
    if (!is_complete || asked.tokens < 1 || asked.streams < 1 || asked.total < 1) {
        fprintf(stderr, "httpgen: -p, -b, -e, -l and -m are needed, and numbers of at least 1\n");
        exit(2);
    }
}

int main(int argc, char **argv) {
    struct rlimit files;
    read_arguments(argc, argv);
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    streams = calloc(asked.streams, sizeof *streams);
    spare = calloc(asked.streams, sizeof *spare);
    first_token = calloc(asked.total, sizeof *first_token);
    whole = calloc(asked.total, sizeof *whole);
    per_second = calloc(asked.total, sizeof *per_second);
    if (epoll_fd < 0 || !streams || !spare || !first_token || !whole || !per_second) { perror("httpgen"); return 2; }
    for (int index = asked.streams; index--;) spare[spare_count++] = index;
    run();
    print_figures();
    return 0;
}
