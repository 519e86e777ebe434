// fuse_uring.c: a block device of FUSE and loop with nothing behind it, its requests taken over io_uring (Linux 6.14 and newer, with
// /sys/module/fuse/parameters/enable_uring on). The yardstick for what our FUSE server, which reads /dev/fuse, would gain by that form:
// no protocol, no storage, no tables, no recovery, only the requests that loop makes.
//
//   fuse_uring THREADS       prints the path of the device when it is there; removes it when standard input is closed
//
// The kernel has a queue for each processor, all of which must have entries; threads share them out. Each entry has room for one request's
// headers and data. Answering a request and waiting for the next one is one command.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/io_uring.h>
#include <linux/loop.h>
#include <linux/mount.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { DEPTH = 32, DATA_BYTES = 128 << 10, BLOCK_BYTES = 4096, FILE_NODE = 2, RING_ENTRIES = 4096 };
static const uint64_t size_bytes = 64ull << 30;
static const uint32_t valid_seconds = 1u << 30;
// The kernel's names for these are younger than the headers of a distribution that is.
enum { REGISTER = 1, COMMIT_AND_FETCH = 2 };
static const uint64_t over_io_uring = 1ull << 41;
static const uint32_t no_flush = 1u << 5, parallel_direct_writes = 1u << 6;

struct headers {
  char in_out[128]; // the request's header, then the answer's
  char op_in[128];  // what the operation asks for
  struct {
    uint64_t flags, commit_id;
    uint32_t data_bytes, padding;
    uint64_t reserved;
  } entry;
};
_Static_assert(sizeof(struct headers) == 288, "as the kernel has it");

struct command {
  uint64_t flags, commit_id;
  uint16_t queue;
  uint8_t padding[6];
};

struct entry {
  struct headers *headers;
  char *data;
  uint16_t queue;
  struct iovec places[2];
};

struct worker {
  pthread_t thread;
  int channel, first, step, queues;
};

static void fail(const char *what) {
  fprintf(stderr, "fuse_uring: %s: %s\n", what, strerror(errno));
  exit(1);
}

static void *map(size_t bytes, int flags, int fd, off_t at) {
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags | MAP_POPULATE, fd, at);
  if (memory == MAP_FAILED) fail("map memory");
  return memory;
}

static struct fuse_attr attributes(uint64_t node) {
  struct fuse_attr attr = {.ino = node, .nlink = 1, .mode = 040500};
  if (node == FILE_NODE) {
    attr.mode = 0100600;
    attr.size = size_bytes;
    attr.blocks = size_bytes / 512;
    attr.blksize = BLOCK_BYTES;
  }
  return attr;
}

static int answer(struct entry *entry, const void *body, size_t bytes) {
  memcpy(entry->data, body, bytes);
  return (int)bytes;
}

// Bytes of the answer, or a negative error number. What is read is whatever the entry held.
static int serve(struct entry *entry) {
  const struct fuse_in_header *request = (const void *)entry->headers->in_out;
  switch (request->opcode) {
  case FUSE_READ:
    return (int)((const struct fuse_read_in *)entry->headers->op_in)->size;
  case FUSE_WRITE: {
    struct fuse_write_out out = {.size = ((const struct fuse_write_in *)entry->headers->op_in)->size};
    return answer(entry, &out, sizeof out);
  }
  case FUSE_LOOKUP: {
    struct fuse_entry_out out = {.nodeid = FILE_NODE, .entry_valid = valid_seconds, .attr_valid = valid_seconds, .attr = attributes(FILE_NODE)};
    return answer(entry, &out, sizeof out);
  }
  case FUSE_GETATTR: {
    struct fuse_attr_out out = {.attr_valid = valid_seconds, .attr = attributes(request->nodeid)};
    return answer(entry, &out, sizeof out);
  }
  case FUSE_OPEN: {
    struct fuse_open_out out = {.open_flags = FOPEN_DIRECT_IO | no_flush | parallel_direct_writes};
    return answer(entry, &out, sizeof out);
  }
  case FUSE_STATFS: {
    struct fuse_statfs_out out = {.st = {.blocks = size_bytes / BLOCK_BYTES, .bsize = BLOCK_BYTES, .frsize = BLOCK_BYTES, .namelen = 255}};
    return answer(entry, &out, sizeof out);
  }
  case FUSE_RELEASE:
  case FUSE_FSYNC:
  case FUSE_FALLOCATE:
    return 0;
  default:
    return -ENOSYS;
  }
}

struct ring {
  int fd;
  char *sqes;
  unsigned *tail, mask, *array, *completed_head, completed_mask, queued;
  _Atomic unsigned *completed_tail;
  struct io_uring_cqe *completions;
};

static struct ring make_ring(void) {
  struct io_uring_params params = {.flags = IORING_SETUP_SQE128 | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
  struct ring ring = {.fd = (int)syscall(SYS_io_uring_setup, RING_ENTRIES, &params)};
  if (ring.fd < 0) fail("make an io_uring");
  // One mapping holds both queues since Linux 5.4.
  size_t bytes = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
  size_t submissions = params.sq_off.array + params.sq_entries * sizeof(unsigned);
  char *both = map(bytes > submissions ? bytes : submissions, MAP_SHARED, ring.fd, IORING_OFF_SQ_RING);
  ring.sqes = map(params.sq_entries * 128ul, MAP_SHARED, ring.fd, IORING_OFF_SQES);
  ring.tail = (unsigned *)(both + params.sq_off.tail);
  ring.mask = *(unsigned *)(both + params.sq_off.ring_mask);
  ring.array = (unsigned *)(both + params.sq_off.array);
  ring.completed_head = (unsigned *)(both + params.cq_off.head);
  ring.completed_tail = (_Atomic unsigned *)(both + params.cq_off.tail);
  ring.completed_mask = *(unsigned *)(both + params.cq_off.ring_mask);
  ring.completions = (struct io_uring_cqe *)(both + params.cq_off.cqes);
  return ring;
}

// The ring is made and used by one thread, which enters it before the queue can be full: an entry has one command at a time.
static void queue_command(struct ring *ring, int channel, struct entry *entry, unsigned op, uint64_t commit_id) {
  unsigned at = *ring->tail & ring->mask;
  struct io_uring_sqe *sqe = (struct io_uring_sqe *)(ring->sqes + at * 128ul);
  memset(sqe, 0, 128);
  sqe->opcode = IORING_OP_URING_CMD;
  sqe->fd = channel;
  sqe->cmd_op = op;
  sqe->user_data = (uint64_t)(uintptr_t)entry;
  if (op == REGISTER) {
    sqe->addr = (uint64_t)(uintptr_t)entry->places;
    sqe->len = 2;
  }
  struct command command = {.commit_id = commit_id, .queue = entry->queue};
  memcpy(sqe->cmd, &command, sizeof command);
  ring->array[at] = at;
  atomic_store_explicit((_Atomic unsigned *)ring->tail, *ring->tail + 1, memory_order_release);
  ring->queued++;
}

static void *work(void *argument) {
  const struct worker *worker = argument;
  struct ring ring = make_ring();
  int left = 0;
  for (int queue = worker->first; queue < worker->queues; queue += worker->step) {
    struct entry *entries = calloc(DEPTH, sizeof *entries);
    if (!entries) fail("allocate entries");
    for (int index = 0; index < DEPTH; index++, left++) {
      struct entry *entry = &entries[index];
      entry->queue = (uint16_t)queue;
      entry->headers = map(BLOCK_BYTES, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      entry->data = map(DATA_BYTES, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      entry->places[0] = (struct iovec){entry->headers, sizeof *entry->headers};
      entry->places[1] = (struct iovec){entry->data, DATA_BYTES};
      queue_command(&ring, worker->channel, entry, REGISTER, 0);
    }
  }
  while (left > 0) {
    long taken = syscall(SYS_io_uring_enter, ring.fd, ring.queued, 1, IORING_ENTER_GETEVENTS, NULL, 0);
    if (taken < 0 && errno != EINTR) fail("wait for requests");
    if (taken > 0) ring.queued -= (unsigned)taken;
    unsigned head = *ring.completed_head, tail = atomic_load_explicit(ring.completed_tail, memory_order_acquire);
    for (; head != tail; head++) {
      const struct io_uring_cqe *done = &ring.completions[head & ring.completed_mask];
      struct entry *entry = (struct entry *)(uintptr_t)done->user_data;
      if (done->res < 0) {
        // The file system is gone; anything else is a command that was wrong.
        if (done->res != -ENOTCONN) {
          errno = -done->res;
          fail("take a request");
        }
        left--;
        continue;
      }
      const struct fuse_in_header *request = (const void *)entry->headers->in_out;
      int result = serve(entry);
      uint32_t bytes = result > 0 ? (uint32_t)result : 0;
      struct fuse_out_header header = {.len = (uint32_t)sizeof header + bytes, .error = result < 0 ? result : 0, .unique = request->unique};
      memcpy(entry->headers->in_out, &header, sizeof header);
      entry->headers->entry.data_bytes = bytes;
      queue_command(&ring, worker->channel, entry, COMMIT_AND_FETCH, entry->headers->entry.commit_id);
    }
    atomic_store_explicit((_Atomic unsigned *)ring.completed_head, head, memory_order_release);
  }
  return NULL;
}

static int mount_nowhere(int channel) {
  char number[16];
  snprintf(number, sizeof number, "%d", channel);
  int context = (int)syscall(SYS_fsopen, "fuse", FSOPEN_CLOEXEC);
  if (context < 0) fail("make a FUSE file system");
  const char *options[][2] = {{"source", "nothing"}, {"fd", number}, {"rootmode", "40000"}, {"user_id", "0"}, {"group_id", "0"}};
  for (size_t index = 0; index < sizeof options / sizeof *options; index++) {
    if (syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, options[index][0], options[index][1], 0)) fail("set an option of the file system");
  }
  if (syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0)) fail("create the file system");
  int mount = (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0);
  if (mount < 0) fail("mount the file system");
  close(context);
  return mount;
}

static void shake_hands(int channel) {
  static char message[DATA_BYTES + 4096];
  if (read(channel, message, sizeof message) < (ssize_t)(sizeof(struct fuse_in_header) + sizeof(struct fuse_init_in))) fail("read INIT");
  const struct fuse_in_header *request = (const void *)message;
  const struct fuse_init_in *init = (const void *)(request + 1);
  uint64_t offered = (uint64_t)init->flags2 << 32 | init->flags;
  if (!(offered & over_io_uring)) {
    fprintf(stderr, "fuse_uring: the kernel does not offer it: Linux 6.14, and Y in /sys/module/fuse/parameters/enable_uring\n");
    exit(1);
  }
  uint64_t flags = offered & (FUSE_BIG_WRITES | FUSE_ASYNC_DIO | FUSE_ABORT_ERROR | FUSE_MAX_PAGES | FUSE_INIT_EXT | over_io_uring);
  struct {
    struct fuse_out_header header;
    struct fuse_init_out init;
  } reply = {
      .header = {.len = sizeof reply, .unique = request->unique},
      .init = {.major = FUSE_KERNEL_VERSION, .minor = 38, .flags = (uint32_t)flags, .flags2 = (uint32_t)(flags >> 32), .max_background = 1024,
               .congestion_threshold = 768, .max_write = DATA_BYTES, .max_pages = DATA_BYTES / 4096, .time_gran = 1},
  };
  if (write(channel, &reply, sizeof reply) != sizeof reply) fail("answer INIT");
}

// Attaches the first loop device that is free; its number.
static int attach(int file, char *path, size_t bytes) {
  int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
  if (control < 0) fail("open /dev/loop-control");
  for (;;) {
    int number = ioctl(control, LOOP_CTL_GET_FREE);
    if (number < 0) fail("find a free loop device");
    snprintf(path, bytes, "/dev/loop%d", number);
    int device = open(path, O_RDWR | O_CLOEXEC);
    if (device < 0) fail("open a loop device");
    struct loop_config config = {.fd = (uint32_t)file, .block_size = BLOCK_BYTES, .info = {.lo_flags = LO_FLAGS_DIRECT_IO}};
    if (ioctl(device, LOOP_CONFIGURE, &config) == 0) {
      close(control);
      return device;
    }
    // Somebody else was faster.
    if (errno != EBUSY) fail("attach a loop device");
    close(device);
  }
}

int main(int count, char **arguments) {
  int threads = count == 2 ? atoi(arguments[1]) : 0, queues = (int)sysconf(_SC_NPROCESSORS_CONF);
  if (threads < 1 || threads > queues || queues * DEPTH > RING_ENTRIES) {
    fprintf(stderr, "usage: fuse_uring THREADS, from 1 to the number of processors, of which there may be %d\n", RING_ENTRIES / DEPTH);
    return 2;
  }
  int channel = open("/dev/fuse", O_RDWR | O_CLOEXEC);
  if (channel < 0) fail("open /dev/fuse");
  int mount = mount_nowhere(channel);
  shake_hands(channel);
  struct worker *workers = calloc((size_t)threads, sizeof *workers);
  if (!workers) fail("allocate workers");
  for (int index = 0; index < threads; index++) {
    workers[index] = (struct worker){.channel = channel, .first = index, .step = threads, .queues = queues};
    errno = pthread_create(&workers[index].thread, NULL, work, &workers[index]);
    if (errno) fail("start a thread");
  }
  int file = openat(mount, "nothing", O_RDWR | O_CLOEXEC);
  if (file < 0) fail("open the file");
  char path[32];
  int device = attach(file, path, sizeof path);
  printf("%s\n", path);
  fflush(stdout);
  char rest[64];
  while (read(STDIN_FILENO, rest, sizeof rest) > 0) {
  }
  if (ioctl(device, LOOP_CLR_FD)) fail("detach the loop device");
  close(device);
  close(file);
  close(mount);
  // The file system ends when loop's reference is gone, and with it the commands of all entries.
  for (int index = 0; index < threads; index++) pthread_join(workers[index].thread, NULL);
  return 0;
}
