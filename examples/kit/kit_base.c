/* kit_base.c - K1: errors, files, folders, the clock, numbers for people. */
#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "kit.h"

/* ------------------------------------------------------------------------------------ errors -- */

bool kit_fail(xg_error *error, xg_code code, const char *format, ...)
{
    if (error == NULL || error->code != XG_ERR_OK) return false;    /* the first one stays */
    va_list arguments;
    va_start(arguments, format);
    error->code = code;
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    return false;
}

const char *kit_short_path(const char *path, char out[100])
{
    size_t length = strlen(path);
    if (length <= 99) {
        memcpy(out, path, length + 1);
    } else {
        memcpy(out, "...", 3);
        memcpy(out + 3, path + length - 96, 97);    /* the end tells files apart, not the start */
    }
    return out;
}

/* For system calls: what could not be done, to what, and what the system said. errno is read first,
 * since anything may change it. */
static bool fail_path(xg_error *error, const char *what, const char *path)
{
    int  number = errno;
    char text[100];
    return kit_fail(error, XG_ERR_IO, "cannot %s %s: %s", what, kit_short_path(path, text),
                    strerror(number));
}

/* ------------------------------------------------------------------------------------- paths -- */

/* A name that is absolute stands for itself, as it does in a shell. */
bool kit_join(char *out, size_t size, const char *folder, const char *name, xg_error *error)
{
    bool   bare = folder[0] == '\0' || name[0] == '/';
    size_t length = bare ? 0 : strlen(folder);
    bool   slash = length > 0 && folder[length - 1] != '/';
    size_t need = length + (slash ? 1 : 0) + strlen(name) + 1;
    if (need > size) {
        char text[100];
        return kit_fail(error, XG_ERR_ARGUMENT, "the path to %s is too long (%zu of %zu bytes)",
                        kit_short_path(name, text), need, size);
    }
    if (!bare) memcpy(out, folder, length);
    if (slash) out[length++] = '/';
    memcpy(out + length, name, strlen(name) + 1);
    return true;
}

bool kit_is_file(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0 && S_ISREG(s.st_mode);
}

bool kit_is_folder(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

/* Like mkdir -p. Two programs may do it at the same time: what counts is that the folder exists. */
bool kit_make_folder(const char *path, xg_error *error)
{
    char *part = kit_copy_text(path);
    if (part == NULL) return kit_fail(error, XG_ERR_MEMORY, "out of memory for a path");
    bool fine = true;
    size_t length = strlen(part);
    for (size_t i = 1; i <= length && fine; i++) {      /* each parent, then the folder itself */
        if (part[i] != '/' && part[i] != '\0') continue;
        char kept = part[i];
        part[i] = '\0';
        if (mkdir(part, 0777) != 0 && !kit_is_folder(part)) {
            fine = fail_path(error, "make the folder", part);
        }
        part[i] = kept;
    }
    free(part);
    return fine;
}

/* ------------------------------------------------------------------------------- whole files -- */

/* Grows by doubling instead of asking for the size, so that pipes and /proc work; the limit is
 * checked while reading, so that an endless file ends too. */
bool kit_read_file(const char *path, size_t limit, unsigned char **bytes, size_t *count,
                   xg_error *error)
{
    char  text[100];
    FILE *file = fopen(path, "rb");
    if (file == NULL) return fail_path(error, "open", path);
    if (kit_is_folder(path)) {
        fclose(file);
        return kit_fail(error, XG_ERR_IO, "%s is a folder, not a file", kit_short_path(path, text));
    }
    size_t room = 1 << 16, used = 0;
    unsigned char *buffer = (unsigned char *)malloc(room);
    bool fine = buffer != NULL || kit_fail(error, XG_ERR_MEMORY, "out of memory for a file");
    while (fine) {                                      /* pipes have no size to ask for */
        used += fread(buffer + used, 1, room - 1 - used, file);
        if (used > limit) {
            fine = kit_fail(error, XG_ERR_UNSUPPORTED, "%s is larger than the limit of %zu bytes",
                            kit_short_path(path, text), limit);
        } else if (ferror(file)) {
            fine = fail_path(error, "read", path);
        } else if (used < room - 1) {
            break;                                      /* the end */
        } else {
            unsigned char *larger = (unsigned char *)realloc(buffer, room * 2);
            if (larger == NULL) fine = kit_fail(error, XG_ERR_MEMORY, "out of memory for a file");
            else { buffer = larger; room *= 2; }
        }
    }
    fclose(file);
    if (!fine) {
        free(buffer);
        return false;
    }
    buffer[used] = 0;
    *bytes = buffer;
    *count = used;
    return true;
}

/* A reader sees the old file or the new one, never half of one; so does a run that is killed. */
bool kit_write_file(const char *path, const void *bytes, size_t count, xg_error *error)
{
    size_t length = strlen(path);
    char  *temporary = (char *)malloc(length + 5);
    if (temporary == NULL) return kit_fail(error, XG_ERR_MEMORY, "out of memory for a path");
    memcpy(temporary, path, length);
    memcpy(temporary + length, ".tmp", 5);
    FILE *file = fopen(temporary, "wb");
    bool  fine = file != NULL || fail_path(error, "write", temporary);
    if (fine) {
        fine = fwrite(bytes, 1, count, file) == count;
        fine = (fclose(file) == 0) && fine;             /* a full disk may show only here */
        if (!fine) fail_path(error, "write", temporary);
        if (fine && rename(temporary, path) != 0) fine = fail_path(error, "rename to", path);
        if (!fine) remove(temporary);
    }
    free(temporary);
    return fine;
}

/* ----------------------------------------------------------------------------------- folders -- */

/* Byte order, not the language's: the same list on every machine. */
static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Adds a copy of the name; `room` grows by doubling. */
static bool add_name(kit_names *names, int *room, const char *name)
{
    if (names->count == *room) {
        int    more = *room == 0 ? 64 : *room * 2;
        char **larger = (char **)realloc(names->name, (size_t)more * sizeof *larger);
        if (larger == NULL) return false;
        names->name = larger;
        *room = more;
    }
    char *copy = kit_copy_text(name);
    if (copy == NULL) return false;
    names->name[names->count++] = copy;
    return true;
}

/* stat decides what an entry is, since not every file system tells it in the entry. */
bool kit_list_folder(const char *path, bool folders, kit_names *out, xg_error *error)
{
    DIR *folder = opendir(path);
    if (folder == NULL) return fail_path(error, "open the folder", path);
    kit_names names = { NULL, 0 };
    int  room = 0;
    bool fine = true;
    const struct dirent *entry;
    while (fine && (entry = readdir(folder)) != NULL) {
        char full[4096];
        if (entry->d_name[0] == '.') continue;
        fine = kit_join(full, sizeof full, path, entry->d_name, error);
        if (fine && (folders ? kit_is_folder(full) : kit_is_file(full))
            && !add_name(&names, &room, entry->d_name)) {
            fine = kit_fail(error, XG_ERR_MEMORY, "out of memory for a list of files");
        }
    }
    closedir(folder);
    if (!fine) {
        kit_names_free(&names);
        return false;
    }
    if (names.count > 1) qsort(names.name, (size_t)names.count, sizeof *names.name, by_name);
    *out = names;
    return true;
}

void kit_names_free(kit_names *names)
{
    for (int i = 0; i < names->count; i++) free(names->name[i]);
    free(names->name);
    names->name = NULL;
    names->count = 0;
}

char *kit_copy_text(const char *text)
{
    size_t size = strlen(text) + 1;
    char  *copy = (char *)malloc(size);
    if (copy != NULL) memcpy(copy, text, size);
    return copy;
}

/* ------------------------------------------------------------------------- clock and machine -- */

/* Monotonic: setting the machine's time does not disturb rates and remaining times. */
double kit_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int kit_cpus(void)
{
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count < 1 ? 1 : count > 1024 ? 1024 : (int)count;
}

/* ------------------------------------------------------------------------ numbers for people -- */

const char *kit_human_time(double seconds, char out[32])
{
    if (!(seconds >= 0) || seconds > 1e9) {
        snprintf(out, 32, "?");
    } else if (seconds < 59.95) {
        snprintf(out, 32, "%.1f s", seconds);
    } else {
        long whole = (long)(seconds + 0.5);
        if (whole < 3600) snprintf(out, 32, "%ld min %02ld s", whole / 60, whole % 60);
        else snprintf(out, 32, "%ld h %02ld min", whole / 3600, whole % 3600 / 60);
    }
    return out;
}

/* Three digits and a unit. */
static const char *scaled(double value, double step, const char *const *unit, int units,
                          char out[32])
{
    int i = 0;
    while (fabs(value) >= 0.9995 * step && i < units - 1) {     /* 999.7 reads as 1.00 k */
        value /= step;
        i++;
    }
    double size = fabs(value);
    int digits = size == floor(size) && i == 0 ? 0 : size < 9.995 ? 2 : size < 99.95 ? 1 : 0;
    snprintf(out, 32, "%.*f%s%s", digits, value, unit[i][0] != '\0' ? " " : "", unit[i]);
    return out;
}

const char *kit_human_count(double count, char out[32])
{
    static const char *const unit[] = { "", "k", "M", "G", "T" };
    return scaled(count, 1000, unit, 5, out);
}

const char *kit_human_bytes(double bytes, char out[32])
{
    static const char *const unit[] = { "B", "KiB", "MiB", "GiB", "TiB" };
    return scaled(bytes, 1024, unit, 5, out);
}
