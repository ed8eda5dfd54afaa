<?php
/**
 * Decides who may stream what, then lets go of the connection.
 *
 * GET  /stream.php?prompt=...          for EventSource
 * POST /stream.php {"prompt": "..."}   for fetch
 *
 * PHP's work ends with two headers: Apache hands the client's connection to streaming-daemon, and this worker takes the
 * next request. Everything that needs your application (who is this, may they, what is the prompt) happens here, because
 * nothing after this asks again.
 */

declare(strict_types=1);

const PROMPT_BYTES_MAX = 8192;
const BODY_BYTES_MAX = 65536;
/** Of X-Handoff-Data by PHP-FPM: mod_proxy_fcgi cannot read a longer header line, and answers an empty 500. */
const HANDOFF_BYTES_MAX_BY_FPM = 8173;

/** Ends the request with an error in the form that the daemon uses for its own (RFC 9457). */
function refuse(int $status, string $title, string $detail): never
{
    http_response_code($status);
    header('Content-Type: application/problem+json');
    header('Cache-Control: no-store');
    echo json_encode(['type' => 'about:blank', 'title' => $title, 'status' => $status, 'detail' => $detail]), "\n";
    exit;
}

/**
 * The daemon writes HTTP/1.1 in clear on the client's own socket. mod_socket_handoff does not look for TLS: it would
 * hand such a connection over, and the answer would travel unencrypted to a client that cannot read it.
 *
 * A 500, because the server is set up wrongly and no other request would fare better (a browser repeats a 421).
 */
function refuse_what_cannot_be_handed_over(): void
{
    // mod_ssl sets both. Where TLS ended in front of this host, its administrator may have set one of them by hand
    // (SetEnvIf X-Forwarded-Proto https HTTPS=on, or ServerName https://...), and the connection is plain.
    $has_tls = in_array(strtolower($_SERVER['HTTPS'] ?? ''), ['on', '1'], true)
        && ($_SERVER['REQUEST_SCHEME'] ?? 'https') === 'https';
    $has_http2 = str_starts_with($_SERVER['SERVER_PROTOCOL'] ?? '', 'HTTP/2');
    if (!$has_tls && !$has_http2) {
        return;
    }
    $what = implode(' and ', array_keys(array_filter(['TLS' => $has_tls, 'HTTP/2' => $has_http2])));
    $detail = "This connection speaks $what with Apache, so it cannot be handed over to streaming-daemon. End $what "
        . 'in front of this virtual host, at a proxy that asks it by plain HTTP/1.1 (Protocols http/1.1, SSLEngine off).';
    error_log("stream.php: $detail");
    refuse(500, 'Internal Server Error', $detail);
}

/**
 * REPLACE THIS with the way your application knows its users: a session, as here, or a token.
 *
 * The demonstration's virtual host sets STREAMING_DEMO_USER_ID, which makes everybody the same user.
 */
function authenticated_user_id(): ?int
{
    if (isset($_COOKIE[session_name()])) {
        // Read and let go: a session that stays locked makes the user's other requests wait for this one.
        session_start(['read_and_close' => true, 'cookie_samesite' => 'Lax']);
        if (isset($_SESSION['user_id'])) {
            return (int) $_SESSION['user_id'];
        }
    }
    $demo_user_id = $_SERVER['STREAMING_DEMO_USER_ID'] ?? '';

    return ctype_digit($demo_user_id) ? (int) $demo_user_id : null;
}

/**
 * An answer costs money, and a GET can be started by any page on the web with an image tag. Browsers say where a request
 * comes from; a client that says nothing is not a browser.
 */
function refuse_other_sites(): void
{
    $site = $_SERVER['HTTP_SEC_FETCH_SITE'] ?? 'same-origin';
    if (!in_array($site, ['same-origin', 'none'], true)) {
        refuse(403, 'Forbidden', 'Streams are started from this site only.');
    }
}

function prompt_of_request(): mixed
{
    switch ($_SERVER['REQUEST_METHOD'] ?? '') {
        case 'GET':
            return $_GET['prompt'] ?? null;
        case 'POST':
            if (!preg_match('~^application/json\s*(;|$)~i', $_SERVER['CONTENT_TYPE'] ?? '')) {
                refuse(415, 'Unsupported Media Type', 'Send the prompt as application/json.');
            }
            $body = file_get_contents('php://input', length: BODY_BYTES_MAX + 1);
            if ($body === false || strlen($body) > BODY_BYTES_MAX) {
                refuse(413, 'Content Too Large', 'The request is longer than ' . BODY_BYTES_MAX . ' bytes.');
            }
            $request = json_decode($body, true, 8);
            if (!is_array($request)) {
                refuse(400, 'Bad Request', 'The body is not a JSON object.');
            }
            return $request['prompt'] ?? null;
        default:
            header('Allow: GET, POST');
            refuse(405, 'Method Not Allowed', 'Use GET or POST.');
    }
}

function validated_prompt(mixed $prompt): string
{
    if (!is_string($prompt) || trim($prompt) === '') {
        refuse(400, 'Bad Request', 'The prompt is missing.');
    }
    if (strlen($prompt) > PROMPT_BYTES_MAX) {
        refuse(413, 'Content Too Large', 'The prompt is longer than ' . PROMPT_BYTES_MAX . ' bytes.');
    }
    // Without /u's check an invalid byte would make json_encode() fail below.
    if (preg_match('//u', $prompt) !== 1) {
        refuse(400, 'Bad Request', 'The prompt is not valid UTF-8.');
    }
    return $prompt;
}

refuse_what_cannot_be_handed_over();
refuse_other_sites();
$user_id = authenticated_user_id();
if ($user_id === null) {
    refuse(401, 'Unauthorized', 'Log in first.');
}
$prompt = validated_prompt(prompt_of_request());

// ASCII on purpose (json_encode's default): a header has no character set, and no line break survives the escaping.
$handoff = json_encode(['user_id' => $user_id, 'prompt' => $prompt], JSON_THROW_ON_ERROR);
if (PHP_SAPI === 'fpm-fcgi' && strlen($handoff) > HANDOFF_BYTES_MAX_BY_FPM) {
    refuse(413, 'Content Too Large', 'The prompt is too long for a handoff by PHP-FPM, where its JSON may have '
        . HANDOFF_BYTES_MAX_BY_FPM . ' bytes.');
}

header('X-Socket-Handoff: ' . ($_SERVER['STREAMING_DAEMON_SOCKET'] ?? '/run/streaming-daemon.sock'));
header('X-Handoff-Data: ' . $handoff);
exit;
