<?php
// Sets whatever handoff headers the test asks for, where stream.php would never set wrong ones.
declare(strict_types=1);

header('X-Socket-Handoff: ' . $_REQUEST['socket']);
if (isset($_REQUEST['data'])) {
    header('X-Handoff-Data: ' . $_REQUEST['data']);
}
// A careless application's output after its decision: it must not reach the client beside the stream.
echo str_repeat('written by mistake ', (int) ($_GET['output_count'] ?? 0));
