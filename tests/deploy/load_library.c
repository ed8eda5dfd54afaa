/* Loads the plane's library and calls the entry point that inspects descriptors, as config/library.py does. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>

typedef int32_t (*inspect_function)(int64_t *, void **, int64_t, int64_t, int64_t, int64_t);

int main(int count, char **arguments) {
    int sockets[2], datagrams[2];
    int32_t words[8] = {0, 0, 1};
    int64_t found = -1;
    void *fault = 0;
    void *library = count == 2 ? dlopen(arguments[1], RTLD_NOW) : 0;
    if (!library) { fprintf(stderr, "%s\n", dlerror()); return 2; }
    inspect_function inspect = (inspect_function)dlsym(library, "sd_inspect");
    if (!inspect || !dlsym(library, "sd_run")) { fprintf(stderr, "an entry point is missing\n"); return 3; }
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) || socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams)) return 4;
    int fds[] = {sockets[0], datagrams[0], -1};
    for (int index = 0; index < 3; index++) {
        int32_t status = inspect(&found, &fault, fds[index], -1, 0, (int64_t)(intptr_t)words);
        printf("%d %lld\n", status, (long long)found);
    }
    return 0;
}
