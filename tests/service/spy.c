/* Loaded before the C library: writes down every name that the process looks up, and finds none. */
#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
    (void)service, (void)hints, (void)found;
    int log = open(getenv("SPY_LOG"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (log < 0 || node == NULL)
        return EAI_NONAME;
    ssize_t written = write(log, node, strlen(node)) + write(log, "\n", 1);
    close(log);
    return written < 0 ? EAI_SYSTEM : EAI_NONAME;
}
