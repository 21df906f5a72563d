/* A CUDA driver and runtime that claim one device and do nothing.
 *
 * Preloaded, it lets ONNX Runtime's CUDA provider start on a host without a GPU, far enough
 * to assign every node of a graph to a provider. Memory is then never allocated and no kernel
 * runs: creating cuBLAS's handle fails next.
 */
#include <string.h>

enum { PROPERTIES = 200, SOME_MEMORY = 1 << 30 };

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaSetDevice(int device) { (void)device; return 0; }
int cudaGetLastError(void) { return 0; }
int cudaDeviceSynchronize(void) { return 0; }
int cudaGetDeviceProperties(void *properties, int device) {
    (void)device;
    memset(properties, 0, PROPERTIES);
    return 0;
}
int cudaGetDeviceProperties_v2(void *properties, int device) {
    return cudaGetDeviceProperties(properties, device);
}
int cudaMemGetInfo(size_t *available, size_t *total) { *available = *total = SOME_MEMORY; return 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    (void)attribute; (void)device;
    *value = 8;
    return 0;
}
int cudaStreamCreateWithFlags(void **stream, unsigned flags) {
    (void)flags;
    *stream = (void *)8;
    return 0;
}
int cudaStreamDestroy(void *stream) { (void)stream; return 0; }
int cudaStreamSynchronize(void *stream) { (void)stream; return 0; }

/* The one function of the driver that the provider links to. */
int cuTensorMapEncodeTiled(void) { return 0; }
