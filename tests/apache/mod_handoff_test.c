/*
 * mod_handoff_test: hands a client's connection from Apache to the daemon, for the end-to-end tests.
 *
 * An application answers with `X-Socket-Handoff: PATH` and, if it likes, `X-Handoff-Data: JSON`. This module then sends
 * the JSON and the client's descriptor to the Unix socket at PATH in one message, lets go of the connection, and the
 * Apache worker is free for the next request.
 *
 * It is a stand-in for tests: it keeps the wire format, the time limits and the statuses of the module that is used in
 * production, and is not itself meant for production.
 *
 *     SocketHandoffEnabled On
 *     SocketHandoffAllowedPrefix /run/
 *     SocketHandoffConnectTimeoutMs 100
 *
 * The work is done in an output filter, because only there has every kind of handler (PHP, CGI, a proxy) set its
 * headers and nothing has been written yet. Runs in Apache's worker; one request at a time per connection.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "apr_lib.h"
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
#include "http_ssl.h"
#include "util_filter.h"

APLOG_USE_MODULE(handoff_test);

#define FILTER_NAME "HANDOFF_TEST"
#define HEADER_PATH "X-Socket-Handoff"
#define HEADER_DATA "X-Handoff-Data"

#define PREFIX_DEFAULT "/run/"
#define CONNECT_TIMEOUT_MS_DEFAULT 100
#define CONNECT_TIMEOUT_MS_MAX 10000
#define SEND_TIMEOUT_MS 200
#define RETRY_COUNT_MAX 2
#define RETRY_BACKOFF_MS 10

/* -1 stands for "not set here", so that a virtual host inherits from the server. */
typedef struct {
    int enabled;
    int connect_timeout_ms;
    const char *allowed_prefix;
} handoff_settings;

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

/*
 * The path that symbolic links lead to. The socket itself may be absent (the daemon is down, which is 503 and not 403),
 * so then its folder is resolved alone. A dangling link is refused: it could point out of the allowed folder by the time
 * of the connect.
 */
static handoff_result resolve_path(apr_pool_t *pool, const char *path, const char **resolved)
{
    char buffer[PATH_MAX];
    struct stat link_status;
    const char *name;

    if (realpath(path, buffer)) {
        *resolved = apr_pstrdup(pool, buffer);
        return HANDOFF_OK;
    }
    if (errno != ENOENT) {
        return handoff_failure(HTTP_FORBIDDEN, errno, "the path cannot be resolved");
    }
    if (lstat(path, &link_status) == 0) {
        return handoff_failure(HTTP_FORBIDDEN, 0, "the path is a symbolic link to nowhere");
    }
    name = strrchr(path, '/') + 1;
    if (*name == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
        return handoff_failure(HTTP_FORBIDDEN, 0, "the path does not name a socket");
    }
    if (!realpath(apr_pstrndup(pool, path, (apr_size_t)(name - path)), buffer)) {
        return handoff_failure(HTTP_SERVICE_UNAVAILABLE, errno, "the socket's folder does not exist");
    }
    *resolved = apr_pstrcat(pool, buffer, strcmp(buffer, "/") == 0 ? "" : "/", name, NULL);
    return HANDOFF_OK;
}

/* The slash matters: /run must not allow /running. */
static int lies_in_folder(apr_pool_t *pool, const char *path, const char *folder)
{
    const char *prefix = folder[strlen(folder) - 1] == '/' ? folder : apr_pstrcat(pool, folder, "/", NULL);
    return strncmp(path, prefix, strlen(prefix)) == 0;
}

/* Both sides are resolved before they are compared: /var/run is a link to /run on most systems. */
static int path_is_allowed(apr_pool_t *pool, const char *resolved, const char *allowed_prefix)
{
    char buffer[PATH_MAX];
    return realpath(allowed_prefix, buffer) && lies_in_folder(pool, resolved, buffer);
}

static handoff_result prepare_address(apr_pool_t *pool, const handoff_settings *settings, const char *path,
                                      struct sockaddr_un *address)
{
    const char *resolved = NULL;
    handoff_result result;

    if (path[0] != '/') {
        return handoff_failure(HTTP_FORBIDDEN, 0, "the path is not absolute");
    }
    result = resolve_path(pool, path, &resolved);
    if (result.http_status) {
        /* A missing folder outside the prefix is nobody's business: it is forbidden, not unavailable. */
        if (!lies_in_folder(pool, path, settings->allowed_prefix)) {
            result.http_status = HTTP_FORBIDDEN;
        }
        return result;
    }
    if (!path_is_allowed(pool, resolved, settings->allowed_prefix)) {
        return handoff_failure(HTTP_FORBIDDEN, 0, "the path is outside the allowed prefix");
    }
    if (strlen(resolved) >= sizeof(address->sun_path)) {
        return handoff_failure(HTTP_FORBIDDEN, ENAMETOOLONG, "the path is too long for a Unix socket");
    }
    memset(address, 0, sizeof(*address));
    address->sun_family = AF_UNIX;
    apr_cpystrn(address->sun_path, resolved, sizeof(address->sun_path));
    return HANDOFF_OK;
}

/* ---- the message ---- */

/*
 * The kernel honours SO_SNDTIMEO for connect() on Unix sockets too, where it waits for a place in the backlog. A
 * non-blocking connect() would fail with EAGAIN at once and leave nothing to poll for.
 */
static int set_send_timeout(int descriptor, int timeout_ms)
{
    struct timeval timeout;
    timeout.tv_sec = timeout_ms / 1000;
    timeout.tv_usec = (timeout_ms % 1000) * 1000;
    return setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
}

static int connect_once(const struct sockaddr_un *address, int connect_timeout_ms)
{
    int descriptor = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    int error_number;

    if (descriptor < 0) {
        return -1;
    }
    if (set_send_timeout(descriptor, connect_timeout_ms) == 0
        && connect(descriptor, (const struct sockaddr *)address, sizeof(*address)) == 0) {
        return descriptor;
    }
    error_number = errno;
    close(descriptor);
    errno = error_number;
    return -1;
}

/* ENOENT and ECONNREFUSED are what a daemon looks like while it restarts: worth 10 and 20 ms of waiting, no others are. */
static int connect_with_retries(const struct sockaddr_un *address, int connect_timeout_ms)
{
    int attempt;

    for (attempt = 0;; attempt++) {
        int descriptor = connect_once(address, connect_timeout_ms);
        if (descriptor >= 0 || attempt == RETRY_COUNT_MAX || (errno != ENOENT && errno != ECONNREFUSED)) {
            return descriptor;
        }
        apr_sleep(apr_time_from_msec(RETRY_BACKOFF_MS << attempt));
    }
}

/* One message, whole or not at all: SOCK_SEQPACKET keeps the data and the descriptor together. */
static int send_handoff(int daemon_descriptor, const char *data, int client_descriptor)
{
    /* An empty message cannot be told from a closed connection, so "no data" is one NUL byte. */
    struct iovec payload = {(void *)(data ? data : ""), data ? strlen(data) : 1};
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

    if (set_send_timeout(daemon_descriptor, SEND_TIMEOUT_MS) != 0) {
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

    /* The descriptor carries frames of several requests (HTTP/2) or ciphertext (TLS): no daemon could answer on it. */
    if (connection->master || request->proto_num >= HTTP_VERSION(2, 0)) {
        return handoff_failure(HTTP_INTERNAL_SERVER_ERROR, 0, "an HTTP/2 stream cannot be handed off");
    }
    if (ap_ssl_conn_is_ssl(connection)) {
        return handoff_failure(HTTP_INTERNAL_SERVER_ERROR, 0, "a TLS connection cannot be handed off");
    }
    socket = ap_get_conn_socket(connection);
    if (!socket || apr_os_sock_get(&descriptor, socket) != APR_SUCCESS || descriptor < 0) {
        return handoff_failure(HTTP_INTERNAL_SERVER_ERROR, 0, "the connection has no socket");
    }
    *client_descriptor = descriptor;
    return HANDOFF_OK;
}

static handoff_result deliver(request_rec *request, const struct sockaddr_un *address, int connect_timeout_ms,
                              const char *data, int client_descriptor, int dead_descriptor)
{
    handoff_result result = HANDOFF_OK;
    int daemon_descriptor = connect_with_retries(address, connect_timeout_ms);

    if (daemon_descriptor < 0) {
        return handoff_failure(HTTP_SERVICE_UNAVAILABLE, errno, "the daemon does not accept connections");
    }
    if (send_handoff(daemon_descriptor, data, client_descriptor) != 0) {
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
    struct sockaddr_un address;
    int client_descriptor = -1;
    int dead_descriptor;
    handoff_result result = client_socket(request, &client_descriptor);

    if (!result.http_status) {
        result = prepare_address(request->pool, settings, path, &address);
    }
    if (result.http_status) {
        return result;
    }
    dead_descriptor = make_dead_socket();
    if (dead_descriptor < 0) {
        return handoff_failure(HTTP_INTERNAL_SERVER_ERROR, errno, "no descriptor left");
    }
    result = deliver(request, &address, settings->connect_timeout_ms, data, client_descriptor, dead_descriptor);
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

/* An error bucket lets Apache write its ordinary page for the status, ErrorDocument included. */
static apr_status_t answer_with_error(ap_filter_t *filter, apr_bucket_brigade *brigade, const handoff_result *result)
{
    request_rec *request = filter->r;
    apr_bucket_alloc_t *allocator = request->connection->bucket_alloc;

    ap_log_rerror(APLOG_MARK, APLOG_ERR, result->error_number, request, "handoff refused with %d: %s",
                  result->http_status, result->reason);
    APR_BRIGADE_INSERT_TAIL(brigade, ap_bucket_error_create(result->http_status, NULL, request->pool, allocator));
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
    /* HEAD asks for a head only, and the daemon would send a body. */
    if (!path || request->header_only) {
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
    if (settings->enabled == 1 && !request->main) {
        ap_add_output_filter(FILTER_NAME, NULL, request, request->connection);
    }
}

/* ---- configuration ---- */

static void *create_settings(apr_pool_t *pool, server_rec *server)
{
    handoff_settings *settings = apr_pcalloc(pool, sizeof(*settings));

    /* The main server is created first and is never merged into another, so it holds the defaults. */
    settings->enabled = server->is_virtual ? -1 : 0;
    settings->connect_timeout_ms = server->is_virtual ? -1 : CONNECT_TIMEOUT_MS_DEFAULT;
    settings->allowed_prefix = server->is_virtual ? NULL : PREFIX_DEFAULT;
    return settings;
}

static void *merge_settings(apr_pool_t *pool, void *base, void *override)
{
    const handoff_settings *outer = base;
    const handoff_settings *inner = override;
    handoff_settings *merged = apr_pcalloc(pool, sizeof(*merged));

    merged->enabled = inner->enabled >= 0 ? inner->enabled : outer->enabled;
    merged->connect_timeout_ms = inner->connect_timeout_ms >= 0 ? inner->connect_timeout_ms : outer->connect_timeout_ms;
    merged->allowed_prefix = inner->allowed_prefix ? inner->allowed_prefix : outer->allowed_prefix;
    return merged;
}

static handoff_settings *command_settings(cmd_parms *command)
{
    return ap_get_module_config(command->server->module_config, &handoff_test_module);
}

static const char *set_enabled(cmd_parms *command, void *unused, int flag)
{
    (void)unused;
    command_settings(command)->enabled = flag ? 1 : 0;
    return NULL;
}

static const char *set_allowed_prefix(cmd_parms *command, void *unused, const char *value)
{
    (void)unused;
    if (value[0] != '/') {
        return "SocketHandoffAllowedPrefix must be an absolute path";
    }
    command_settings(command)->allowed_prefix = value;
    return NULL;
}

static const char *set_connect_timeout(cmd_parms *command, void *unused, const char *value)
{
    char *end = NULL;
    long timeout_ms = strtol(value, &end, 10);

    (void)unused;
    if (!apr_isdigit(value[0]) || *end != '\0' || timeout_ms < 1 || timeout_ms > CONNECT_TIMEOUT_MS_MAX) {
        return "SocketHandoffConnectTimeoutMs must be between 1 and 10000";
    }
    command_settings(command)->connect_timeout_ms = (int)timeout_ms;
    return NULL;
}

static const command_rec commands[] = {
    AP_INIT_FLAG("SocketHandoffEnabled", set_enabled, NULL, RSRC_CONF, "On to hand connections off; Off by default"),
    AP_INIT_TAKE1("SocketHandoffAllowedPrefix", set_allowed_prefix, NULL, RSRC_CONF,
                  "the folder that handoff sockets must lie in; /run/ by default"),
    AP_INIT_TAKE1("SocketHandoffConnectTimeoutMs", set_connect_timeout, NULL, RSRC_CONF,
                  "how long to wait for the daemon to accept, in milliseconds; 100 by default"),
    {NULL}};

static void register_hooks(apr_pool_t *pool)
{
    (void)pool;
    /* Before the content filters (compression, includes): they would buffer or rewrite a body that never comes. */
    ap_register_output_filter(FILTER_NAME, handoff_filter, NULL, AP_FTYPE_RESOURCE);
    ap_hook_insert_filter(insert_handoff_filter, NULL, NULL, APR_HOOK_LAST);
}

module AP_MODULE_DECLARE_DATA handoff_test_module = {
    STANDARD20_MODULE_STUFF, NULL, NULL, create_settings, merge_settings, commands, register_hooks, 0,
};
