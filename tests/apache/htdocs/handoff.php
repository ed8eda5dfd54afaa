<?php
// Sets whatever handoff headers the test asks for, where stream.php would never set wrong ones.
declare(strict_types=1);

header('X-Socket-Handoff: ' . $_GET['socket']);
if (isset($_GET['data'])) {
    header('X-Handoff-Data: ' . $_GET['data']);
}
// A careless application's output after its decision: it must not reach the client beside the stream.
echo str_repeat('written by mistake ', (int) ($_GET['output_count'] ?? 0));
