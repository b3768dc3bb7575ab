/* Stands between a daemon and the disk beneath its state directory, by LD_PRELOAD: writes down what is done to the
 * disk in its order, so that a test can say what a power cut would have left of it; and lets writes, syncs and the wall
 * clock fail as they do in the world. Whatever is done elsewhere goes through untouched.
 *
 * The system is called directly and not by the next library's function: nothing has to be looked up before the first
 * call, and nothing of what is done here comes back here. The reader of the log and of the counters is `mod.rs`. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* Shared with the test, which reads and writes the file that this is mapped from; `mod.rs` has the same order. */
struct control {
  int64_t writes_left;       /* writes that still find room; -1: there is room for all */
  int64_t writes_refused;    /* ENOSPC that was given */
  int64_t syncs_left;        /* syncs of the database that still succeed; -1: all do */
  int64_t syncs_to_fail;     /* how many fail then */
  int64_t folds_to_fail;     /* how many syncs of the database file itself fail, at once */
  int64_t syncs_failed;      /* EIO that was given */
  int64_t syncs_after;       /* syncs of the database that were tried after the first EIO */
  int64_t sync_microseconds; /* how long every sync takes */
  int64_t syncs_under_way;   /* of the database, as the next */
  int64_t syncs;             /* that were asked for */
  int64_t foldings;          /* writes to the database file itself, which follow those to its log */
  int64_t clock_offset;      /* microseconds that the wall clock is ahead by */
  int64_t clock_reads;       /* how often it was read while it was ahead or behind */
};

/* One step of the log. Behind it come the paths and the data. */
struct step {
  uint32_t length; /* all of it, so that one that was cut off is known */
  uint32_t what;
  uint64_t file;   /* inode */
  uint64_t at;     /* offset, length or mode */
  uint64_t upto;   /* of a sync: length of the log when it began */
  uint32_t path, other, data; /* lengths */
  uint32_t reserved;
};

enum { CREATED = 1, WROTE, CUT, SYNCED, RENAMED, UNLINKED, MADE_DIRECTORY };

static char root[PATH_MAX];
static size_t root_length;
static int log_file = -1;
static struct control *control;
static pid_t owner;
/* As with PRAGMA synchronous=NORMAL; see `sync_of`. */
static int is_lazy;
/* The order of the log is the order of what is done: both happen under this. */
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void start(void) {
  const char *below = getenv("FAULTS_BELOW"), *steps = getenv("FAULTS_LOG"), *shared = getenv("FAULTS_CONTROL");
  /* What the daemon starts is not the disk's business. */
  unsetenv("LD_PRELOAD");
  if (!below || !shared || strlen(below) >= sizeof root) return;
  int fd = (int)syscall(SYS_openat, AT_FDCWD, shared, O_RDWR | O_CLOEXEC, 0);
  if (fd < 0) return;
  void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  syscall(SYS_close, fd);
  if (mapped == MAP_FAILED) return;
  if (steps) log_file = (int)syscall(SYS_openat, AT_FDCWD, steps, O_RDWR | O_APPEND | O_CLOEXEC, 0);
  is_lazy = getenv("FAULTS_LAZY") != NULL;
  root_length = strlen(strcpy(root, below));
  owner = getpid();
  control = mapped;
}

/* A child that has not become its program yet shares nothing of this, least of all the lock. */
static int is_active(void) { return control && getpid() == owner; }

static int64_t look(int64_t *counter) { return __atomic_load_n(counter, __ATOMIC_SEQ_CST); }
static int64_t add(int64_t *counter, int64_t n) { return __atomic_add_fetch(counter, n, __ATOMIC_SEQ_CST); }

/* Takes one of what is left. 0: nothing was left. */
static int take(int64_t *left) {
  int64_t found = look(left);
  while (found > 0)
    if (__atomic_compare_exchange_n(left, &found, found - 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return 1;
  return found < 0;
}

static int ends_with(const char *path, const char *ending) {
  size_t length = strlen(path), wanted = strlen(ending);
  return length >= wanted && !strcmp(path + length - wanted, ending);
}

static int is_beneath(const char *path) {
  return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

/* The directory of the state directory: a sync of it keeps the name of the latter. */
static int is_above(const char *path) {
  size_t length = strlen(path);
  return length < root_length && !strncmp(path, root, length) && !strchr(root + length + 1, '/');
}

/* Where an open file is. Asked each time, so that nothing has to be known of duplicates and closes. */
static int path_of(int fd, char *path) {
  char link[32];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  return is_beneath(path) || is_above(path);
}

static int path_at(int directory, const char *name, char *path) {
  char base[PATH_MAX] = "";
  if (name[0] != '/') {
    char link[32] = "/proc/self/cwd";
    if (directory != AT_FDCWD) snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 2);
    if (length <= 0) return 0;
    base[length] = '/';
    base[length + 1] = 0;
  }
  return snprintf(path, PATH_MAX, "%s%s", base, name) < PATH_MAX && is_beneath(path);
}

/* The index of the log is memory that all connections share: it is made anew from the log, and never on a disk. */
static int is_derived(const char *path) { return ends_with(path, "-shm"); }

static uint64_t inode(int fd, uint64_t *mode) {
  struct stat found = {0};
  syscall(SYS_newfstatat, fd, "", &found, AT_EMPTY_PATH);
  if (mode) *mode = found.st_mode;
  return found.st_ino;
}

/* One write of one step: whoever dies in the middle leaves at most the last one torn. */
static void note(struct step step, const char *path, const char *other, const void *data, size_t size) {
  if (log_file < 0 || is_derived(path)) return;
  step.path = (uint32_t)strlen(path);
  step.other = (uint32_t)strlen(other);
  step.data = (uint32_t)size;
  step.length = (uint32_t)sizeof step + step.path + step.other + step.data;
  struct iovec parts[] = {
      {&step, sizeof step}, {(void *)path, step.path}, {(void *)other, step.other}, {(void *)data, size}};
  /* A log with a gap would have the test judge what never was. */
  if (syscall(SYS_writev, log_file, parts, 4) != (ssize_t)step.length) abort();
}

static uint64_t log_length(void) { return (uint64_t)syscall(SYS_lseek, log_file, 0, SEEK_END); }

/* --- names -------------------------------------------------------------------------------------------------------- */

static int refuse_space(void) {
  add(&control->writes_refused, 1);
  errno = ENOSPC;
  return -1;
}

static int opened(int directory, const char *name, int flags, mode_t mode) {
  char path[PATH_MAX];
  if (!is_active() || !(flags & (O_CREAT | O_TRUNC)) || !path_at(directory, name, path))
    return (int)syscall(SYS_openat, directory, name, flags, mode);
  pthread_mutex_lock(&order);
  int is_new = syscall(SYS_faccessat, AT_FDCWD, path, F_OK) != 0;
  int fd = -1;
  if (is_new && (flags & O_CREAT) && !take(&control->writes_left))
    refuse_space();
  else
    fd = (int)syscall(SYS_openat, directory, name, flags, mode);
  int error = errno;
  if (fd >= 0) {
    struct step step = {.what = is_new ? CREATED : CUT};
    uint64_t found;
    step.file = inode(fd, &found);
    step.at = is_new ? found : 0;
    if (is_new || (flags & O_TRUNC)) note(step, path, "", NULL, 0);
  }
  pthread_mutex_unlock(&order);
  errno = error;
  return fd;
}

#define OPEN(function, parameters, directory)                                                                          \
  int function parameters {                                                                                            \
    va_list more;                                                                                                      \
    va_start(more, flags);                                                                                             \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;                                            \
    va_end(more);                                                                                                      \
    return opened(directory, path, flags, mode);                                                                       \
  }
OPEN(open, (const char *path, int flags, ...), AT_FDCWD)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD)
OPEN(openat, (int at, const char *path, int flags, ...), at)
OPEN(openat64, (int at, const char *path, int flags, ...), at)

int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

/* Does what changes a name, and notes it once it is done. */
#define NAMED(call, step, at, name, other)                                                                             \
  char path[PATH_MAX], second[PATH_MAX] = "";                                                                          \
  const char *target = other;                                                                                          \
  if (!is_active() || !path_at(at, name, path) || (target && !path_at(at, target, second))) return (int)call;          \
  pthread_mutex_lock(&order);                                                                                          \
  int done = (int)call, error = errno;                                                                                 \
  if (!done) note(step, path, second, NULL, 0);                                                                        \
  pthread_mutex_unlock(&order);                                                                                        \
  errno = error;                                                                                                       \
  return done

int mkdir(const char *name, mode_t mode) {
  struct step step = {.what = MADE_DIRECTORY, .at = mode};
  NAMED(syscall(SYS_mkdirat, AT_FDCWD, name, mode), step, AT_FDCWD, name, NULL);
}

int unlinkat(int at, const char *name, int flags) {
  struct step step = {.what = UNLINKED};
  NAMED(syscall(SYS_unlinkat, at, name, flags), step, at, name, NULL);
}

int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int rename(const char *from, const char *to) {
  struct step step = {.what = RENAMED};
  NAMED(syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0), step, AT_FDCWD, from, to);
}

/* --- content ------------------------------------------------------------------------------------------------------ */

static int wal_is_behind;
static uint64_t wal;
static int is_header_alone;

/* What NORMAL leaves out is the sync of the log at a commit. It still syncs the log before anything of it goes into the
 * database file, and its header whenever the log begins anew. */
static void note_lazily(const char *path, uint64_t file, uint64_t at, size_t size) {
  if (ends_with(path, "-wal")) {
    is_header_alone = at == 0 && size == 32;
    wal = file;
  } else if (ends_with(path, ".db") && wal_is_behind) {
    struct step step = {.what = SYNCED, .file = wal, .upto = log_length()};
    char name[PATH_MAX + 8];
    snprintf(name, sizeof name, "%s-wal", path);
    note(step, name, "", NULL, 0);
    wal_is_behind = 0;
  }
}

/* `at` is -1 where the file's own position is meant. */
static ssize_t written(int fd, const struct iovec *parts, int count, off_t at) {
  char path[PATH_MAX];
  int is_ours = is_active() && path_of(fd, path);
  if (is_ours && !take(&control->writes_left)) return refuse_space();
  if (is_ours) pthread_mutex_lock(&order);
  ssize_t done = at < 0 ? syscall(SYS_writev, fd, parts, count) : syscall(SYS_pwritev, fd, parts, count, at, 0L);
  if (!is_ours) return done;
  int error = errno;
  if (done > 0) {
    if (ends_with(path, "/agentd.db")) add(&control->foldings, 1);
    struct step step = {.what = WROTE, .file = inode(fd, NULL)};
    step.at = (uint64_t)(at < 0 ? syscall(SYS_lseek, fd, 0, SEEK_CUR) - done : at);
    if (is_lazy) note_lazily(path, step.file, step.at, (size_t)done);
    ssize_t left = done;
    for (int n = 0; n < count && left > 0; n++) {
      ssize_t size = left < (ssize_t)parts[n].iov_len ? left : (ssize_t)parts[n].iov_len;
      note(step, path, "", parts[n].iov_base, (size_t)size);
      step.at += (uint64_t)size;
      left -= size;
    }
  }
  pthread_mutex_unlock(&order);
  errno = error;
  return done;
}

ssize_t write(int fd, const void *data, size_t size) {
  struct iovec all = {(void *)data, size};
  return written(fd, &all, 1, -1);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  struct iovec all = {(void *)data, size};
  return written(fd, &all, 1, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) { return pwrite(fd, data, size, at); }
ssize_t writev(int fd, const struct iovec *parts, int count) { return written(fd, parts, count, -1); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { return written(fd, parts, count, at); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t at) { return written(fd, parts, count, at); }

int ftruncate(int fd, off_t length) {
  char path[PATH_MAX];
  if (!is_active() || !path_of(fd, path)) return (int)syscall(SYS_ftruncate, fd, length);
  pthread_mutex_lock(&order);
  int done = (int)syscall(SYS_ftruncate, fd, length), error = errno;
  struct step step = {.what = CUT, .file = inode(fd, NULL), .at = (uint64_t)length};
  if (!done) note(step, path, "", NULL, 0);
  pthread_mutex_unlock(&order);
  errno = error;
  return done;
}

int ftruncate64(int fd, off_t length) { return ftruncate(fd, length); }

/* Neither the daemon nor its SQLite asks for room beforehand; if one began to, the log would lack it. */
int fallocate(int fd, int mode, off_t at, off_t length) {
  char path[PATH_MAX];
  if (is_active() && path_of(fd, path)) abort();
  return (int)syscall(SYS_fallocate, fd, mode, at, length);
}

int fallocate64(int fd, int mode, off_t at, off_t length) { return fallocate(fd, mode, at, length); }

/* --- syncs -------------------------------------------------------------------------------------------------------- */

static int sync_fails(const char *path) {
  if (look(&control->syncs_failed) > 0) add(&control->syncs_after, 1);
  if (ends_with(path, "/agentd.db") && look(&control->folds_to_fail) > 0) {
    add(&control->folds_to_fail, -1);
    add(&control->syncs_failed, 1);
    return 1;
  }
  if (take(&control->syncs_left) || look(&control->syncs_to_fail) == 0) return 0;
  add(&control->syncs_to_fail, -1);
  add(&control->syncs_failed, 1);
  return 1;
}

static void note_sync(const char *path, int fd, uint64_t upto) {
  if (is_lazy && ends_with(path, "-wal") && !is_header_alone) {
    wal_is_behind = 1;
    return;
  }
  struct step step = {.what = SYNCED, .upto = upto};
  uint64_t mode;
  step.file = inode(fd, &mode);
  step.at = S_ISDIR(mode);
  note(step, path, "", NULL, 0);
}

static int sync_of(int fd, long call) {
  char path[PATH_MAX];
  if (!is_active() || !path_of(fd, path)) return (int)syscall(call, fd);
  int is_database = is_beneath(path) && strstr(path + root_length, "/agentd.db") != NULL;
  add(&control->syncs, is_database);
  add(&control->syncs_under_way, is_database);
  pthread_mutex_lock(&order);
  uint64_t upto = log_file < 0 ? 0 : log_length();
  pthread_mutex_unlock(&order);
  int64_t pause = look(&control->sync_microseconds);
  struct timespec wanted = {pause / 1000000, pause % 1000000 * 1000};
  if (pause > 0) syscall(SYS_nanosleep, &wanted, NULL);
  int done = 0, error = errno;
  if (is_database && sync_fails(path)) {
    done = -1;
    error = EIO;
  } else if (log_file < 0) {
    done = (int)syscall(call, fd);
    error = errno;
  } else {
    /* Where a power cut is imitated the log says what is on disk, and the real disk need not be waited for. */
    pthread_mutex_lock(&order);
    note_sync(path, fd, upto);
    pthread_mutex_unlock(&order);
  }
  add(&control->syncs_under_way, -is_database);
  errno = error;
  return done;
}

int fsync(int fd) { return sync_of(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_of(fd, SYS_fdatasync); }

/* --- the wall clock ----------------------------------------------------------------------------------------------- */

static int64_t offset(void) {
  int64_t found = control ? look(&control->clock_offset) : 0;
  if (found) add(&control->clock_reads, 1);
  return found;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  int done = (int)syscall(SYS_clock_gettime, clock, now);
  if (!done && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
    int64_t microseconds = now->tv_sec * 1000000LL + now->tv_nsec / 1000 + offset();
    now->tv_nsec = microseconds % 1000000 * 1000 + now->tv_nsec % 1000;
    now->tv_sec = microseconds / 1000000;
  }
  return done;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  (void)zone;
  struct timespec found;
  int done = clock_gettime(CLOCK_REALTIME, &found);
  *now = (struct timeval){found.tv_sec, found.tv_nsec / 1000};
  return done;
}

time_t time(time_t *now) {
  struct timespec found;
  clock_gettime(CLOCK_REALTIME, &found);
  if (now) *now = found.tv_sec;
  return found.tv_sec;
}
