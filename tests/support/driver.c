/* A CUDA driver with no GPU behind it: device memory is host memory, and work is done late.

   What is put into a stream waits there until somebody synchronises with it, as late as a GPU may do
   it: who forgets to wait reads what was there before. Memory is handed out and taken back dirty. A
   captured stream becomes a graph that can be launched. Only what cuda.core calls is here; the rest
   is not found by cuGetProcAddress, which cuda.bindings says by name. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    OK, INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED, INVALID_CONTEXT = 201, NOT_FOUND = 500,
    NOT_READY = 600, ILLEGAL_ADDRESS = 700, CAPTURING = 900
};
enum { DEVICE_MEMORY = 2, HOST_MEMORY = 1 };
typedef uint64_t Address;
typedef void (*Function)(void *);

typedef struct Op Op;
typedef struct { Op *first, **last; int ended; } Graph;
typedef struct Stream {
    pthread_mutex_t running;
    Op *first, **last;
    uint64_t queued, done;
    Graph *captured;
} Stream;
typedef struct { Stream *stream; uint64_t at; int64_t ns; } Event;
struct Op {
    enum { COPY, SET, CALL, RECORD, WAIT, FREE, LAUNCH } kind;
    Address to, from;
    size_t size;
    unsigned value;
    int width;
    Function function;
    void *argument;
    Event *event;
    Stream *other;
    uint64_t at;
    Graph *graph;
    Op *next;
};
typedef struct Block { Address at; size_t size; int kind; struct Block *next; } Block;

static pthread_mutex_t table = PTHREAD_MUTEX_INITIALIZER;
static Block *blocks;
static size_t used, reserved, limit = (size_t)1 << 40;
static struct { const char *name; long calls; } counted[256];
static Stream defaults[3];
static char contexts[8], pools[8]; /* one a GPU */
static __thread void *current[8];  /* the context that a thread has, and those below it */
static __thread int depth;
static int fails_captures, sticks;
static pid_t initialised;

/* What tests ask and set. */

static void count(const char *name) {
    pthread_mutex_lock(&table);
    int at = 0;
    while (counted[at].name && strcmp(counted[at].name, name)) at++;
    counted[at].name = name;
    counted[at].calls++;
    pthread_mutex_unlock(&table);
}
#define COUNT count(__func__)

/* What makes something in the current context needs one, and a process that was forked after cuInit
   has none; an error that spoils the context is every later call's. See cuCtxSetCurrent, cuInit and
   CUresult in NVIDIA's CUDA driver API. */
static int unusable(void) {
    if (initialised != getpid()) return NOT_INITIALIZED;
    return sticks ? sticks : current[depth] ? OK : INVALID_CONTEXT;
}
#define USABLE do { int error = unusable(); if (error) return error; } while (0)

long simulated_calls(const char *name) {
    for (int at = 0; counted[at].name; at++)
        if (!strcmp(counted[at].name, name)) return counted[at].calls;
    return 0;
}
void simulated_limit(size_t bytes) { limit = bytes; }
size_t simulated_used(void) { return used; }
size_t simulated_reserved(void) { return reserved; }
void simulated_capture_fails(int yes) { fails_captures = yes; }
void simulated_sticks(int error) { sticks = error; }
int simulated_device(void) { return current[depth] ? (int)((char *)current[depth] - contexts) : -1; }
int simulated_kind(Address at) {
    int kind = 0;
    pthread_mutex_lock(&table);
    for (Block *b = blocks; b; b = b->next)
        if (b->at <= at && at < b->at + b->size) kind = b->kind;
    pthread_mutex_unlock(&table);
    return kind;
}

/* Memory */

static int allocate(Address *at, size_t size, int kind) {
    pthread_mutex_lock(&table);
    int full = kind == DEVICE_MEMORY && used + size > limit;
    if (!full && kind == DEVICE_MEMORY) used += size;
    if (used > reserved) reserved = used; /* a pool keeps what it has until it is trimmed */
    pthread_mutex_unlock(&table);
    if (full) return OUT_OF_MEMORY;
    Block *block = malloc(sizeof *block);
    *at = (Address)aligned_alloc(256, (size + 511) / 256 * 256);
    memset((void *)*at, 0x5A, size);
    pthread_mutex_lock(&table);
    *block = (Block){*at, size, kind, blocks};
    blocks = block;
    pthread_mutex_unlock(&table);
    return OK;
}

static int release(Address at) {
    pthread_mutex_lock(&table);
    Block **place = &blocks, *block;
    while (*place && (*place)->at != at) place = &(*place)->next;
    if ((block = *place)) {
        *place = block->next;
        if (block->kind == DEVICE_MEMORY) used -= block->size;
    }
    pthread_mutex_unlock(&table);
    if (!block) return INVALID_VALUE;
    memset((void *)at, 0xDD, block->size);
    free((void *)at);
    free(block);
    return OK;
}

/* Streams */

static Stream *stream_of(void *handle) {
    return (uintptr_t)handle <= 2 ? &defaults[(uintptr_t)handle] : handle;
}

static void begin_stream(Stream *stream) {
    pthread_mutexattr_t how;
    pthread_mutexattr_init(&how);
    pthread_mutexattr_settype(&how, PTHREAD_MUTEX_RECURSIVE);
    memset(stream, 0, sizeof *stream);
    pthread_mutex_init(&stream->running, &how);
    stream->last = &stream->first;
}

__attribute__((constructor)) static void begin(void) {
    for (int at = 0; at < 3; at++) begin_stream(&defaults[at]);
}

static void drain(Stream *stream, uint64_t until);

static void run(Op *op) {
    struct timespec now;
    switch (op->kind) {
    case COPY: memcpy((void *)op->to, (void *)op->from, op->size); break;
    case SET:
        for (size_t at = 0; at < op->size; at++)
            memcpy((char *)op->to + at * op->width, &op->value, op->width);
        break;
    case CALL: op->function(op->argument); break;
    case RECORD:
        clock_gettime(CLOCK_MONOTONIC, &now);
        op->event->ns = now.tv_sec * 1000000000LL + now.tv_nsec;
        break;
    case WAIT: drain(op->other, op->at); break;
    case FREE: release(op->to); break;
    case LAUNCH: for (Op *at = op->graph->first; at; at = at->next) run(at); break;
    }
}

static void drain(Stream *stream, uint64_t until) {
    pthread_mutex_lock(&stream->running);
    while (stream->done < until) {
        pthread_mutex_lock(&table);
        Op *op = stream->first;
        stream->first = op->next;
        if (!stream->first) stream->last = &stream->first;
        pthread_mutex_unlock(&table);
        run(op);
        stream->done++;
        free(op);
    }
    pthread_mutex_unlock(&stream->running);
}

static int put(void *handle, Op op) {
    Stream *stream = stream_of(handle);
    Op *made = malloc(sizeof *made);
    *made = op;
    made->next = 0;
    pthread_mutex_lock(&table);
    if (stream->captured) {
        *stream->captured->last = made;
        stream->captured->last = &made->next;
    } else {
        *stream->last = made;
        stream->last = &made->next;
        stream->queued++;
        if (op.kind == RECORD) { op.event->stream = stream; op.event->at = stream->queued; }
    }
    pthread_mutex_unlock(&table);
    return OK;
}

int cuStreamCreateWithPriority(void **made, unsigned flags, int priority) {
    COUNT;
    USABLE;
    begin_stream(*made = malloc(sizeof(Stream)));
    return OK;
}
int cuStreamCreate(void **made, unsigned flags) { return cuStreamCreateWithPriority(made, flags, 0); }
int cuStreamSynchronize(void *handle) {
    COUNT;
    Stream *stream = stream_of(handle);
    if (sticks) return sticks;
    if (stream->captured) return CAPTURING;
    drain(stream, stream->queued);
    return OK;
}
int cuStreamDestroy(Stream *stream) { drain(stream, stream->queued); return OK; }
int cuStreamQuery(void *handle) {
    return stream_of(handle)->done == stream_of(handle)->queued ? OK : NOT_READY;
}
int cuStreamWaitEvent(void *handle, Event *event, unsigned flags) {
    COUNT;
    if (!event->stream) return OK;
    return put(handle, (Op){.kind = WAIT, .other = event->stream, .at = event->at});
}
int cuStreamGetFlags(void *handle, unsigned *flags) { *flags = 1; return OK; }
int cuStreamGetPriority(void *handle, int *priority) { *priority = 0; return OK; }
int cuStreamGetCtx(void *handle, void **found) { *found = contexts; return OK; }
int cuStreamGetDevice(void *handle, int *device) { *device = 0; return OK; }
int cuStreamIsCapturing(void *handle, int *status) {
    *status = stream_of(handle)->captured != 0;
    return OK;
}
int cuStreamGetCaptureInfo(void *handle, int *status, uint64_t *id, Graph **graph, ...) {
    Graph *captured = stream_of(handle)->captured;
    *status = captured != 0;
    if (id) *id = (uint64_t)captured;
    if (graph) *graph = captured;
    return OK;
}
int cuThreadExchangeStreamCaptureMode(int *mode) { return OK; }

/* Events */

int cuEventCreate(Event **made, unsigned flags) {
    COUNT;
    USABLE;
    *made = calloc(1, sizeof **made);
    return OK;
}
int cuEventDestroy(Event *event) { return OK; /* one that is recorded may be waited for still */ }
int cuEventRecord(Event *event, void *handle) {
    COUNT;
    return put(handle, (Op){.kind = RECORD, .event = event});
}
int cuEventRecordWithFlags(Event *event, void *handle, unsigned flags) {
    return cuEventRecord(event, handle);
}
int cuEventSynchronize(Event *event) {
    COUNT;
    if (event->stream) drain(event->stream, event->at);
    return OK;
}
int cuEventQuery(Event *event) {
    return !event->stream || event->stream->done >= event->at ? OK : NOT_READY;
}
int cuEventElapsedTime(float *ms, Event *began, Event *ended) {
    if (cuEventQuery(began) || cuEventQuery(ended)) return NOT_READY;
    *ms = (float)(ended->ns - began->ns) / 1e6f;
    return OK;
}

/* Copies */

int cuMemcpyAsync(Address to, Address from, size_t size, void *stream) {
    COUNT;
    return put(stream, (Op){.kind = COPY, .to = to, .from = from, .size = size});
}
int cuMemcpyHtoDAsync(Address to, Address from, size_t size, void *stream) {
    return cuMemcpyAsync(to, from, size, stream);
}
int cuMemcpyDtoHAsync(Address to, Address from, size_t size, void *stream) {
    return cuMemcpyAsync(to, from, size, stream);
}
int cuMemcpyDtoDAsync(Address to, Address from, size_t size, void *stream) {
    return cuMemcpyAsync(to, from, size, stream);
}
int cuMemsetD8Async(Address to, unsigned char value, size_t size, void *stream) {
    COUNT;
    return put(stream, (Op){.kind = SET, .to = to, .size = size, .value = value, .width = 1});
}
int cuMemsetD16Async(Address to, unsigned short value, size_t size, void *stream) {
    return put(stream, (Op){.kind = SET, .to = to, .size = size, .value = value, .width = 2});
}
int cuMemsetD32Async(Address to, unsigned value, size_t size, void *stream) {
    return put(stream, (Op){.kind = SET, .to = to, .size = size, .value = value, .width = 4});
}
int cuLaunchHostFunc(void *stream, Function function, void *argument) {
    COUNT;
    return put(stream, (Op){.kind = CALL, .function = function, .argument = argument});
}

/* Allocations */

int cuMemAllocFromPoolAsync(Address *at, size_t size, void *pool, void *stream) {
    COUNT;
    if (sticks) return sticks;
    return allocate(at, size, DEVICE_MEMORY);
}
int cuMemAllocAsync(Address *at, size_t size, void *stream) {
    return cuMemAllocFromPoolAsync(at, size, 0, stream);
}
int cuMemFreeAsync(Address at, void *stream) {
    COUNT;
    return put(stream, (Op){.kind = FREE, .to = at});
}
int cuMemAlloc(Address *at, size_t size) { COUNT; USABLE; return allocate(at, size, DEVICE_MEMORY); }
int cuMemFree(Address at) { return release(at); }
int cuMemAllocHost(Address *at, size_t size) { COUNT; USABLE; return allocate(at, size, HOST_MEMORY); }
int cuMemHostAlloc(Address *at, size_t size, unsigned flags) { return cuMemAllocHost(at, size); }
int cuMemFreeHost(Address at) { return release(at); }
int cuMemGetInfo(size_t *left, size_t *all) { *left = limit - used; *all = limit; return OK; }
int cuPointerGetAttribute(void *found, int attribute, Address at) {
    int kind = simulated_kind(at);
    if (!kind && attribute != 2) return INVALID_VALUE;
    *(int *)found = attribute == 2 ? kind : 0;
    return OK;
}
int cuPointerGetAttributes(unsigned count, int *attributes, void **found, Address at) {
    for (unsigned each = 0; each < count; each++) {
        int kind = simulated_kind(at);
        *(int *)found[each] = attributes[each] == 2 ? kind : 0;
    }
    return OK;
}
int cuDeviceGetDefaultMemPool(void **pool, int device) { *pool = pools + device; return OK; }
int cuDeviceGetMemPool(void **pool, int device) { *pool = pools + device; return OK; }
int cuMemGetMemPool(void **pool, ...) { *pool = pools; return OK; }
int cuMemPoolGetAttribute(void *pool, int attribute, void *value) {
    *(uint64_t *)value = 0;
    return OK;
}
int cuMemPoolSetAttribute(void *pool, int attribute, void *value) { return OK; }
int cuMemPoolSetAccess(void *pool, void *map, size_t count) { return OK; }
int cuMemPoolGetAccess(int *flags, void *pool, void *location) { *flags = 3; return OK; }
int cuMemPoolCreate(void **pool, void *how) { *pool = pools; return OK; }
int cuMemPoolDestroy(void *pool) { return OK; }
int cuMemPoolTrimTo(void *pool, size_t kept) { COUNT; reserved = used; return OK; }

/* Graphs */

int cuStreamBeginCapture(void *handle, int mode) {
    COUNT;
    if (fails_captures) return CAPTURING;
    Graph *graph = calloc(1, sizeof *graph);
    graph->last = &graph->first;
    stream_of(handle)->captured = graph;
    return OK;
}
int cuStreamEndCapture(void *handle, Graph **graph) {
    *graph = stream_of(handle)->captured;
    stream_of(handle)->captured = 0;
    return OK;
}
int cuGraphInstantiateWithParams(Graph **made, Graph *graph, void *how) {
    COUNT;
    ((int *)how)[6] = 0; /* result_out: success */
    *made = graph;
    return OK;
}
int cuGraphInstantiate(Graph **made, Graph *graph, uint64_t flags) { COUNT; *made = graph; return OK; }
int cuGraphInstantiateWithFlags(Graph **made, Graph *graph, uint64_t flags) {
    return cuGraphInstantiate(made, graph, flags);
}
int cuGraphClone(Graph **made, Graph *graph) { *made = graph; return OK; }
int cuGraphUpload(Graph *graph, void *stream) { return OK; }
int cuGraphLaunch(Graph *graph, void *stream) {
    COUNT;
    return put(stream, (Op){.kind = LAUNCH, .graph = graph});
}
int cuGraphDestroy(Graph *graph) { return OK; }
int cuGraphExecDestroy(Graph *graph) { COUNT; return OK; }
/* cuda.core wants to find these four, and does not call them for what was captured. */
int cuGraphReleaseUserObject(Graph *graph, ...) { return OK; }
int cuGraphExecUpdate(Graph *graph, ...) { return INVALID_VALUE; }
int cuGraphNodeFindInClone(void **found, ...) { return INVALID_VALUE; }
int cuGraphChildGraphNodeGetGraph(void *node, ...) { return INVALID_VALUE; }
int cuGraphRetainUserObject(Graph *graph, ...) { return OK; }
int cuUserObjectCreate(void **made, ...) { *made = contexts; return OK; }
int cuUserObjectRelease(void *object, unsigned count) { return OK; }

/* The device */

int cuInit(unsigned flags) {
    if (!initialised) initialised = getpid();
    return initialised == getpid() ? OK : NOT_INITIALIZED;
}
int cuDriverGetVersion(int *version) { *version = 13000; return OK; }
int cuDeviceGetCount(int *found) {
    const char *said = getenv("SIMULATED_GPUS");
    *found = said ? atoi(said) : 1;
    return OK;
}
int cuDeviceGet(int *device, int ordinal) {
    int found;
    cuDeviceGetCount(&found);
    *device = ordinal;
    return ordinal < found ? OK : INVALID_VALUE;
}
int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, "Simulated GPU", size);
    return OK;
}
int cuDeviceGetUuid(char *uuid, int device) { memset(uuid, 7, 16); return OK; }
int cuDeviceTotalMem(size_t *bytes, int device) { *bytes = limit; return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 75: *value = 8; break; /* COMPUTE_CAPABILITY_MAJOR */
    case 76: *value = 9; break; /* COMPUTE_CAPABILITY_MINOR */
    case 115: case 41: *value = 1; break; /* MEMORY_POOLS_SUPPORTED, UNIFIED_ADDRESSING */
    default: *value = 0;
    }
    return OK;
}
int cuDevicePrimaryCtxRetain(void **found, int device) {
    if (initialised != getpid()) return NOT_INITIALIZED;
    *found = contexts + device;
    return OK;
}
int cuDevicePrimaryCtxRelease(int device) { return OK; }
int cuCtxGetCurrent(void **found) {
    *found = current[depth];
    return initialised == getpid() ? OK : NOT_INITIALIZED;
}
int cuCtxSetCurrent(void *given) {
    COUNT;
    current[depth] = given;
    return initialised == getpid() ? OK : NOT_INITIALIZED;
}
int cuCtxPushCurrent(void *given) { current[++depth] = given; return OK; }
int cuCtxPopCurrent(void **found) { *found = current[depth--]; return OK; }
int cuCtxGetDevice(int *device) {
    *device = simulated_device();
    return *device < 0 ? INVALID_CONTEXT : OK;
}
int cuCtxSynchronize(void) {
    for (int at = 0; at < 3; at++) drain(&defaults[at], defaults[at].queued);
    return OK;
}
int cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = *greatest = 0; return OK; }
int cuCtxGetId(void *given, uint64_t *id) { *id = 1; return OK; }
int cuGetErrorName(int error, const char **text) {
    switch (error) {
    case OUT_OF_MEMORY: *text = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case NOT_INITIALIZED: *text = "CUDA_ERROR_NOT_INITIALIZED"; break;
    case INVALID_CONTEXT: *text = "CUDA_ERROR_INVALID_CONTEXT"; break;
    case ILLEGAL_ADDRESS: *text = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
    default: *text = "CUDA_ERROR_SIMULATED";
    }
    return OK;
}
int cuGetErrorString(int error, const char **text) { return cuGetErrorName(error, text); }

int cuGetProcAddress(const char *name, void **found, int version, uint64_t flags, int *status) {
    static void *here;
    Dl_info self;
    if (!here && dladdr((void *)cuInit, &self)) here = dlopen(self.dli_fname, RTLD_LAZY);
    *found = !strcmp(name, "cuGetProcAddress") ? (void *)cuGetProcAddress : dlsym(here, name);
    if (status) *status = *found ? 0 : 1;
    return *found ? OK : NOT_FOUND;
}
int cuGetProcAddress_v2(const char *name, void **found, int version, uint64_t flags, int *status) {
    return cuGetProcAddress(name, found, version, flags, status);
}
