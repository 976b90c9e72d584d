/* The guest's only program: counts, and proves that its disks are the disks it had.
 *
 *   ticker PERIOD_US SEED FILL_MIB DISK...
 *   ticker file PERIOD_US FILE
 *
 * Every period one count: the record "T <seq> <monotonic ns> <realtime ns>" goes to sector 1 + (seq mod 4095) of every disk
 * in turn, O_DIRECT and synced, and then as a line to standard output, with the time that the slowest of these writes took:
 * "T <seq> <monotonic ns> <realtime ns> <ns>". So a line that was printed is on every disk. Sector 0 may hold partitions.
 * At 2..6 MiB every disk holds a pattern made from SEED; every 50 counts one part of it is read back from every disk:
 * "V <seq> ok" or "V <seq> BAD <disk> <offset>". At start a disk that holds a pattern is checked as a whole, a blank one is written:
 * "P <disk> ok|written|BAD <offset>", and the count goes on from the newest record on any disk: "B <seq>".
 * The second form appends to a file of a filesystem, synced, every ten periods: "W <number> <ns it took>".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum {
    SECTOR = 512,
    RING_SECTORS = 4096,
    PATTERN_START = 2 << 20,
    PART = 256 << 10,
    PARTS = 16,
    COUNTS_PER_CHECK = 50,
    MAX_DISKS = 16,
};

static char *sector, *part, *expected;
static int disk_count, descriptors[MAX_DISKS];
static char **disk_names;
static uint64_t seed;

static long long nanoseconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void *aligned(size_t size) {
    void *memory;
    if (posix_memalign(&memory, 4096, size)) abort();
    return memset(memory, 0, size);
}

static uint64_t step(uint64_t x) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return x;
}

/* What part `number` of disk `disk` must hold. */
static void make_part(int disk, int number) {
    uint64_t x = (seed + 1) * 0x9E3779B97F4A7C15ULL + (uint64_t)(disk * PARTS + number + 1) * 0xD1B54A32D192ED03ULL;
    uint64_t *words = (uint64_t *)expected;
    for (size_t i = 0; i < PART / sizeof *words; i++) words[i] = x = step(x | 1);
}

/* Offset on the disk of the first wrong byte of a part, or -1. */
static long wrong_byte(int disk, int number) {
    off_t at = PATTERN_START + (off_t)number * PART;
    make_part(disk, number);
    if (pread(descriptors[disk], part, PART, at) != PART) return at;
    if (!memcmp(part, expected, PART)) return -1;
    long i = 0;
    while (part[i] == expected[i]) i++;
    return at + i;
}

static int first_part_is_blank(int disk) {
    if (pread(descriptors[disk], part, PART, PATTERN_START) != PART) return 0;
    return part[0] == 0 && !memcmp(part, part + 1, PART - 1);
}

static void write_pattern(int disk) {
    for (int number = 0; number < PARTS; number++) {
        make_part(disk, number);
        if (pwrite(descriptors[disk], expected, PART, PATTERN_START + (off_t)number * PART) != PART) perror("pattern");
    }
}

static void prepare_pattern(int disk) {
    if (first_part_is_blank(disk)) {
        write_pattern(disk);
        printf("P %s written\n", disk_names[disk]);
        return;
    }
    for (int number = 0; number < PARTS; number++) {
        long at = wrong_byte(disk, number);
        if (at >= 0) {
            printf("P %s BAD %ld\n", disk_names[disk], at);
            return;
        }
    }
    printf("P %s ok\n", disk_names[disk]);
}

static void check_pattern(unsigned long seq) {
    for (int disk = 0; disk < disk_count; disk++) {
        long at = wrong_byte(disk, (seq / COUNTS_PER_CHECK) % PARTS);
        if (at >= 0) {
            printf("V %lu BAD %s %ld\n", seq, disk_names[disk], at);
            return;
        }
    }
    printf("V %lu ok\n", seq);
}

static unsigned long newest_record(void) {
    unsigned long newest = 0, seq;
    for (int disk = 0; disk < disk_count; disk++)
        for (int first = 0; first < RING_SECTORS; first += PART / SECTOR) {
            if (pread(descriptors[disk], part, PART, (off_t)first * SECTOR) != PART) continue;
            for (int i = 0; i < PART / SECTOR; i++)
                if (sscanf(part + i * SECTOR, "T %lu ", &seq) == 1 && seq > newest) newest = seq;
        }
    return newest;
}

/* Pages that cannot be left out of a memory image, for measurements with a known size of state. */
static void fill_memory(long mib) {
    if (!mib) return;
    char *memory = mmap(0, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        perror("fill");
        return;
    }
    uint64_t x = 88172645463325252ULL;
    for (long at = 0; at < mib << 20; at += 4096) *(uint64_t *)(memory + at) = x = step(x);
    printf("F %ld MiB\n", mib);
}

static void count(unsigned long seq) {
    char line[96];
    long long slowest = 0;
    int length = snprintf(line, sizeof line, "T %lu %lld %lld\n", seq, nanoseconds(CLOCK_MONOTONIC), nanoseconds(CLOCK_REALTIME));
    memset(sector, 0, SECTOR);
    memcpy(sector, line, length);
    for (int disk = 0; disk < disk_count; disk++) {
        long long begun = nanoseconds(CLOCK_MONOTONIC);
        off_t at = (off_t)(1 + seq % (RING_SECTORS - 1)) * SECTOR;
        if (pwrite(descriptors[disk], sector, SECTOR, at) != SECTOR) perror("record");
        long long taken = nanoseconds(CLOCK_MONOTONIC) - begun;
        if (taken > slowest) slowest = taken;
    }
    printf("%.*s %lld\n", length - 1, line, slowest);
}

/* What a filesystem in use looks like: a journal with something in it, and a writer that stops while it is frozen. */
static int write_file(long period, const char *path) {
    int file = open(path, O_WRONLY | O_CREAT, 0644);
    if (file < 0) {
        perror(path);
        return 1;
    }
    for (unsigned long number = 1;; number++) {
        char line[64];
        int length = snprintf(line, sizeof line, "W %lu\n", number);
        long long begun = nanoseconds(CLOCK_MONOTONIC);
        if (pwrite(file, line, length, (off_t)(number % RING_SECTORS) * SECTOR) != length || fsync(file)) perror(path);
        printf("W %lu %lld\n", number, nanoseconds(CLOCK_MONOTONIC) - begun);
        usleep(10 * period);
    }
}

int main(int argc, char **argv) {
    setvbuf(stdout, 0, _IOLBF, 256);
    if (argc == 4 && !strcmp(argv[1], "file")) return write_file(atol(argv[2]), argv[3]);
    if (argc < 4 || argc - 4 > MAX_DISKS) return 2;
    long period = atol(argv[1]) * 1000L;
    seed = strtoull(argv[2], 0, 10);
    disk_names = argv + 4;
    disk_count = argc - 4;
    sector = aligned(4096), part = aligned(PART), expected = aligned(PART);
    for (int disk = 0; disk < disk_count; disk++) {
        char path[64];
        snprintf(path, sizeof path, "/dev/%s", disk_names[disk]);
        if ((descriptors[disk] = open(path, O_RDWR | O_DIRECT | O_DSYNC)) < 0) {
            perror(path);
            return 1;
        }
        prepare_pattern(disk);
    }
    fill_memory(atol(argv[3]));
    unsigned long seq = newest_record();
    printf("B %lu\n", seq);
    for (long long due = nanoseconds(CLOCK_MONOTONIC);;) {
        count(++seq);
        if (seq % COUNTS_PER_CHECK == 0) check_pattern(seq);
        long long now = nanoseconds(CLOCK_MONOTONIC);
        due = due + period > now ? due + period : now; /* late counts are not made up for in a burst */
        struct timespec until = {due / 1000000000LL, due % 1000000000LL};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, 0);
    }
}
