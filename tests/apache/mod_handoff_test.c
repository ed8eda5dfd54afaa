/*
 * mod_handoff_test: hands a client's connection from Apache to the daemon, for the end-to-end tests.
 *
 * An application answers with `X-Socket-Handoff: PATH` and, if it likes, `X-Handoff-Data: JSON`. This module then sends
 * the JSON and the client's descriptor to the Unix socket at PATH in one message, lets go of the connection, and the
 * Apache worker is free for the next request.
 *
 * It is a stand-in for mod_socket_handoff, which no package has. It keeps that module's wire format, directives,
 * defaults and statuses, and also its gaps, because the tests must show what a user of the real module gets:
 *
 *   - it does not look for TLS: the daemon then writes in clear into the encrypted connection;
 *   - it is on in every virtual host that does not switch it off;
 *   - a prefix that is set for the whole server does not reach virtual hosts: they have /run/ until they set their own;
 *   - the path is compared with the prefix as it is written (`..` taken out), and links are followed;
 *   - HEAD is handed over like GET;
 *   - a daemon whose backlog is full is a failure at once: connecting to a Unix socket never waits, so the time limit
 *     for it has no effect.
 *
 *     SocketHandoffEnabled On
 *     SocketHandoffAllowedPrefix /run/
 *     SocketHandoffConnectTimeoutMs 100
 *     SocketHandoffSendTimeoutMs 200
 *     SocketHandoffMaxRetries 2
 *
 * The work is done in an output filter, because only there has every kind of handler (PHP, CGI, a proxy) set its
 * headers and nothing has been written yet. Runs in Apache's worker; one request at a time per connection.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "apr_file_info.h"
#include "apr_portable.h"
#include "apr_strings.h"
#include "apr_time.h"

/* Apache's own headers need httpd.h first. */
#include "httpd.h"

#include "http_config.h"
#include "http_core.h"
#include "http_log.h"
#include "http_protocol.h"
#include "http_request.h"
#include "util_filter.h"

APLOG_USE_MODULE(handoff_test);

#define FILTER_NAME "HANDOFF_TEST"
#define HEADER_PATH "X-Socket-Handoff"
#define HEADER_DATA "X-Handoff-Data"

#define PREFIX_DEFAULT "/run/"
#define RETRY_BACKOFF_MS 10
#define TIMEOUT_MS_MAX 60000
#define RETRY_COUNT_MAX 10

enum { ENABLED, CONNECT_TIMEOUT_MS, SEND_TIMEOUT_MS, RETRY_COUNT, NUMBER_COUNT };

static const int NUMBERS_DEFAULT[NUMBER_COUNT] = {1, 100, 200, 2};

/* A number that is -1 is not set here, so that a virtual host inherits it from the server. */
typedef struct {
    int numbers[NUMBER_COUNT];
    const char *allowed_prefix;
} handoff_settings;

static int number_of(const handoff_settings *settings, int index)
{
    return settings->numbers[index] >= 0 ? settings->numbers[index] : NUMBERS_DEFAULT[index];
}

/* Outcome of one step: 0, or the HTTP status that the client gets, with the reason for the error log. */
typedef struct {
    int http_status;
    int error_number;
    const char *reason;
} handoff_result;

static const handoff_result HANDOFF_OK = {0, 0, NULL};

static handoff_result handoff_failure(int http_status, int error_number, const char *reason)
{
    handoff_result result = {http_status, error_number, reason};
    return result;
}

/* ---- the path ---- */

/* A path with `.` and `..` taken out, and nothing else: APR follows no links on Unix, whatever it is asked for. */
static const char *merged_path(apr_pool_t *pool, const char *path)
{
    char *merged = NULL;
    return apr_filepath_merge(&merged, NULL, path, APR_FILEPATH_NOTRELATIVE, pool) == APR_SUCCESS ? merged : NULL;
}

/* The slash matters: /run must not allow /running. */
static int path_is_allowed(apr_pool_t *pool, const char *path, const char *allowed_prefix)
{
    const char *merged = merged_path(pool, path);
    const char *prefix = merged_path(pool, allowed_prefix);

    if (!merged || !prefix) {
        return 0;
    }
    if (prefix[strlen(prefix) - 1] != '/') {
        prefix = apr_pstrcat(pool, prefix, "/", NULL);
    }
    return strncmp(merged, prefix, strlen(prefix)) == 0;
}

/* ---- the message ---- */

/* Connected and non-blocking, or -1 with errno. A Unix socket's connect() is done at once or not at all. */
static int connect_once(const char *path)
{
    struct sockaddr_un address;
    int descriptor;
    int error_number;

    memset(&address, 0, sizeof(address));
    address.sun_family = AF_UNIX;
    if (strlen(path) >= sizeof(address.sun_path)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    apr_cpystrn(address.sun_path, path, sizeof(address.sun_path));
    descriptor = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (descriptor < 0 || connect(descriptor, (const struct sockaddr *)&address, sizeof(address)) == 0) {
        return descriptor;
    }
    error_number = errno;
    close(descriptor);
    errno = error_number;
    return -1;
}

/* ENOENT and ECONNREFUSED are what a daemon looks like while it restarts: worth waiting 10, 20, ... ms; no others are. */
static int connect_with_retries(const char *path, int retry_count_max)
{
    int attempt;

    for (attempt = 0;; attempt++) {
        int descriptor = connect_once(path);
        if (descriptor >= 0 || attempt == retry_count_max || (errno != ENOENT && errno != ECONNREFUSED)) {
            return descriptor;
        }
        apr_sleep(apr_time_from_msec(RETRY_BACKOFF_MS << attempt));
    }
}

/* One message, whole or not at all: SOCK_SEQPACKET keeps the data and the descriptor together. */
static int send_handoff(int daemon_descriptor, const char *data, int client_descriptor, int send_timeout_ms)
{
    /* An empty message cannot be told from a closed connection, so "no data" is one NUL byte. */
    struct iovec payload = {(void *)(data && *data ? data : ""), data && *data ? strlen(data) : 1};
    struct pollfd writable = {daemon_descriptor, POLLOUT, 0};
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr alignment;
    } control;
    struct msghdr message;
    struct cmsghdr *header;

    memset(&control, 0, sizeof(control));
    memset(&message, 0, sizeof(message));
    message.msg_iov = &payload;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof(control.bytes);
    header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &client_descriptor, sizeof(int));

    if (poll(&writable, 1, send_timeout_ms) != 1) {
        return -1;
    }
    return sendmsg(daemon_descriptor, &message, MSG_NOSIGNAL) == (ssize_t)payload.iov_len ? 0 : -1;
}

/* ---- the connection ---- */

/*
 * Puts a dead socket in the client's place, under the same number. Apache keeps pointers to its socket in several
 * filters and will still shut down and close what they name; with dup2() all of them mean the dead one, and only the
 * daemon can reach the client. It is made before the handoff, because after it there is no way back.
 */
static int make_dead_socket(void)
{
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0) {
        return -1;
    }
    close(pair[1]);
    return pair[0];
}

static handoff_result release_connection(conn_rec *connection, int client_descriptor, int dead_descriptor)
{
    if (dup3(dead_descriptor, client_descriptor, O_CLOEXEC) < 0) {
        return handoff_failure(HTTP_INTERNAL_SERVER_ERROR, errno, "the connection could not be let go");
    }
    connection->aborted = 1;
    connection->keepalive = AP_CONN_CLOSE;
    return HANDOFF_OK;
}

static handoff_result client_socket(request_rec *request, int *client_descriptor)
{
    conn_rec *connection = request->connection;
    apr_socket_t *socket;
    apr_os_sock_t descriptor = -1;

    /* Nobody looks for TLS here; see above. */
    if (request->proto_num >= HTTP_VERSION(2, 0)) {
        return handoff_failure(HTTP_INTERNAL_SERVER_ERROR, 0, "an HTTP/2 stream cannot be handed off");
    }
    socket = ap_get_conn_socket(connection);
    if (!socket || apr_os_sock_get(&descriptor, socket) != APR_SUCCESS || descriptor < 0) {
        return handoff_failure(HTTP_INTERNAL_SERVER_ERROR, 0, "the connection has no socket");
    }
    *client_descriptor = descriptor;
    return HANDOFF_OK;
}

static handoff_result deliver(request_rec *request, const handoff_settings *settings, const char *path,
                              const char *data, int client_descriptor, int dead_descriptor)
{
    handoff_result result = HANDOFF_OK;
    int daemon_descriptor = connect_with_retries(path, number_of(settings, RETRY_COUNT));

    if (daemon_descriptor < 0) {
        return handoff_failure(HTTP_SERVICE_UNAVAILABLE, errno, "the daemon does not accept connections");
    }
    if (send_handoff(daemon_descriptor, data, client_descriptor, number_of(settings, SEND_TIMEOUT_MS)) != 0) {
        result = handoff_failure(HTTP_INTERNAL_SERVER_ERROR, errno, "the handoff could not be sent");
    } else {
        result = release_connection(request->connection, client_descriptor, dead_descriptor);
    }
    close(daemon_descriptor);
    return result;
}

static handoff_result hand_off(request_rec *request, const handoff_settings *settings, const char *path,
                               const char *data)
{
    const char *prefix = settings->allowed_prefix ? settings->allowed_prefix : PREFIX_DEFAULT;
    int client_descriptor = -1;
    int dead_descriptor;
    handoff_result result = client_socket(request, &client_descriptor);

    if (result.http_status) {
        return result;
    }
    if (!path_is_allowed(request->pool, path, prefix)) {
        return handoff_failure(HTTP_FORBIDDEN, 0, "the path is outside the allowed prefix");
    }
    dead_descriptor = make_dead_socket();
    if (dead_descriptor < 0) {
        return handoff_failure(HTTP_INTERNAL_SERVER_ERROR, errno, "no descriptor left");
    }
    result = deliver(request, settings, path, data, client_descriptor, dead_descriptor);
    close(dead_descriptor);
    return result;
}

/* ---- the filter ---- */

/* The value of a header that must never reach a client, taken out of both tables that Apache would send. */
static const char *take_header(request_rec *request, const char *name)
{
    const char *value = apr_table_get(request->headers_out, name);

    if (!value) {
        value = apr_table_get(request->err_headers_out, name);
    }
    value = value ? apr_pstrdup(request->pool, value) : NULL;
    apr_table_unset(request->headers_out, name);
    apr_table_unset(request->err_headers_out, name);
    return value;
}

/* A page of the module's own: no ErrorDocument, and none of the headers that the application had set. */
static apr_status_t answer_with_error(ap_filter_t *filter, apr_bucket_brigade *brigade, const handoff_result *result)
{
    request_rec *request = filter->r;
    apr_bucket_alloc_t *allocator = request->connection->bucket_alloc;
    const char *page = apr_pstrcat(request->pool, "<!DOCTYPE html>\n<html><body><h1>",
                                   ap_get_status_line(result->http_status), "</h1></body></html>\n", NULL);

    ap_log_rerror(APLOG_MARK, APLOG_ERR, result->error_number, request, "handoff refused with %d: %s",
                  result->http_status, result->reason);
    request->status = result->http_status;
    request->status_line = NULL;
    apr_table_clear(request->headers_out);
    apr_table_clear(request->err_headers_out);
    ap_set_content_type(request, "text/html; charset=utf-8");
    APR_BRIGADE_INSERT_TAIL(brigade, apr_bucket_pool_create(page, strlen(page), request->pool, allocator));
    APR_BRIGADE_INSERT_TAIL(brigade, apr_bucket_eos_create(allocator));
    ap_remove_output_filter(filter);
    return ap_pass_brigade(filter->next, brigade);
}

static apr_status_t handoff_filter(ap_filter_t *filter, apr_bucket_brigade *brigade)
{
    request_rec *request = filter->r;
    const handoff_settings *settings = ap_get_module_config(request->server->module_config, &handoff_test_module);
    const char *path;
    const char *data;
    handoff_result result;

    /* A filter that has handed the connection off stays in place, to swallow whatever the handler still writes. */
    if (filter->ctx) {
        apr_brigade_cleanup(brigade);
        return APR_SUCCESS;
    }
    path = take_header(request, HEADER_PATH);
    data = take_header(request, HEADER_DATA);
    if (!path) {
        ap_remove_output_filter(filter);
        return ap_pass_brigade(filter->next, brigade);
    }
    apr_brigade_cleanup(brigade);
    result = hand_off(request, settings, path, data);
    if (result.http_status) {
        return answer_with_error(filter, brigade, &result);
    }
    filter->ctx = &handoff_test_module;
    return APR_SUCCESS;
}

static void insert_handoff_filter(request_rec *request)
{
    const handoff_settings *settings = ap_get_module_config(request->server->module_config, &handoff_test_module);

    /* A subrequest's headers are not sent, so there is nothing to hide and no connection to give away. */
    if (number_of(settings, ENABLED) && !request->main) {
        ap_add_output_filter(FILTER_NAME, NULL, request, request->connection);
    }
}

/* ---- configuration ---- */

static void *create_settings(apr_pool_t *pool, server_rec *server)
{
    handoff_settings *settings = apr_pcalloc(pool, sizeof(*settings));
    int index;

    (void)server;
    for (index = 0; index < NUMBER_COUNT; index++) {
        settings->numbers[index] = -1;
    }
    return settings;
}

static void *merge_settings(apr_pool_t *pool, void *base, void *override)
{
    const handoff_settings *outer = base;
    const handoff_settings *inner = override;
    handoff_settings *merged = apr_pcalloc(pool, sizeof(*merged));
    int index;

    for (index = 0; index < NUMBER_COUNT; index++) {
        merged->numbers[index] = inner->numbers[index] >= 0 ? inner->numbers[index] : outer->numbers[index];
    }
    /* The server's prefix is not inherited; see above. */
    merged->allowed_prefix = inner->allowed_prefix;
    return merged;
}

static handoff_settings *command_settings(cmd_parms *command)
{
    return ap_get_module_config(command->server->module_config, &handoff_test_module);
}

static const char *set_enabled(cmd_parms *command, void *unused, int flag)
{
    (void)unused;
    command_settings(command)->numbers[ENABLED] = flag ? 1 : 0;
    return NULL;
}

static const char *set_allowed_prefix(cmd_parms *command, void *unused, const char *value)
{
    (void)unused;
    command_settings(command)->allowed_prefix = value;
    return NULL;
}

static const char *set_number(cmd_parms *command, const char *value, int index, int least, int most)
{
    char *end = NULL;
    long number = strtol(value, &end, 10);

    if (end == value || *end != '\0' || number < least || number > most) {
        return apr_psprintf(command->pool, "%s must be between %d and %d", command->cmd->name, least, most);
    }
    command_settings(command)->numbers[index] = (int)number;
    return NULL;
}

static const char *set_connect_timeout(cmd_parms *command, void *unused, const char *value)
{
    (void)unused;
    return set_number(command, value, CONNECT_TIMEOUT_MS, 1, TIMEOUT_MS_MAX);
}

static const char *set_send_timeout(cmd_parms *command, void *unused, const char *value)
{
    (void)unused;
    return set_number(command, value, SEND_TIMEOUT_MS, 1, TIMEOUT_MS_MAX);
}

static const char *set_retry_count(cmd_parms *command, void *unused, const char *value)
{
    (void)unused;
    return set_number(command, value, RETRY_COUNT, 0, RETRY_COUNT_MAX);
}

static const command_rec commands[] = {
    AP_INIT_FLAG("SocketHandoffEnabled", set_enabled, NULL, RSRC_CONF, "Off to hand nothing off; On by default"),
    AP_INIT_TAKE1("SocketHandoffAllowedPrefix", set_allowed_prefix, NULL, RSRC_CONF,
                  "the folder that handoff sockets must lie in; /run/ by default"),
    AP_INIT_TAKE1("SocketHandoffConnectTimeoutMs", set_connect_timeout, NULL, RSRC_CONF,
                  "how long to wait for the daemon to accept, in milliseconds; 100 by default"),
    AP_INIT_TAKE1("SocketHandoffSendTimeoutMs", set_send_timeout, NULL, RSRC_CONF,
                  "how long to wait until the handoff can be sent, in milliseconds; 200 by default"),
    AP_INIT_TAKE1("SocketHandoffMaxRetries", set_retry_count, NULL, RSRC_CONF,
                  "how often to try again while the daemon restarts; 2 by default"),
    {NULL}};

static void register_hooks(apr_pool_t *pool)
{
    (void)pool;
    ap_register_output_filter(FILTER_NAME, handoff_filter, NULL, AP_FTYPE_CONTENT_SET);
    ap_hook_insert_filter(insert_handoff_filter, NULL, NULL, APR_HOOK_LAST);
}

module AP_MODULE_DECLARE_DATA handoff_test_module = {
    STANDARD20_MODULE_STUFF, NULL, NULL, create_settings, merge_settings, commands, register_hooks, 0,
};
