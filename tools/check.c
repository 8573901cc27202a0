/* check.c - reads xguide.h as a strict reviewer would:  check HEADER TESTS_FOLDER EXAMPLES_FOLDER
 *
 *   lines      at most 100 columns, no tabs, no blanks at the end
 *   version    the first line names the version that XG_VERSION_... define
 *   index      every section number [A1]..[A11] and [1]..[11] stands twice: in the index, on its banner
 *   arrows     no section calls a public function that a later section defines
 *   functions  at most 80 lines
 *   public     every XG_API declaration has a comment on it or above it, and a test or an example uses it
 *
 * Prints one line for each complaint and exits 1 if there was any. It reads text, not C: it knows just
 * enough of the file's own habits (a function opens with { in column 1 and closes with } there). */
#include <ctype.h>
#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LINES = 20000, MAX_PUBLIC = 600, COLUMNS = 100, FUNCTION_LINES = 80, SECTIONS = 11 };

typedef struct text { char *bytes; char **line; int lines; } text;
typedef struct symbol { char name[64]; int line, section; } symbol;

static int complaints;

static void complain(const char *path, int line, const char *what, const char *detail)
{
    printf("%s:%d: %s%s%s\n", path, line, what, detail[0] ? ": " : "", detail);
    complaints++;
}

/* A whole file, as one string. */
static char *slurp(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    size_t size = 0, room = 1 << 16;
    char *bytes = malloc(room + 1);
    for (size_t got = 1; bytes && got > 0; size += got) {
        if (size == room) {
            char *more = realloc(bytes, (room *= 2) + 1);
            if (!more) { free(bytes); bytes = NULL; break; }
            bytes = more;
        }
        got = fread(bytes + size, 1, room - size, file);
    }
    if (bytes) bytes[size] = 0;
    fclose(file);
    return bytes;
}

static bool read_lines(const char *path, text *t)
{
    t->bytes = slurp(path);
    t->line = calloc(MAX_LINES, sizeof *t->line);
    t->lines = 0;
    if (!t->bytes || !t->line) return false;
    char *next = t->bytes;
    while (*next && t->lines < MAX_LINES) {
        char *end = strchr(next, '\n');
        t->line[t->lines++] = next;
        if (!end) break;
        *end = 0;
        next = end + 1;
    }
    return true;
}

static void check_lines(const char *path, const text *t)
{
    for (int i = 0; i < t->lines; i++) {
        const char *line = t->line[i];
        size_t length = strlen(line);
        if (length > COLUMNS) complain(path, i + 1, "longer than 100 columns", "");
        if (strchr(line, '\t')) complain(path, i + 1, "a tab", "");
        if (length && line[length - 1] == ' ') complain(path, i + 1, "blanks at the end", "");
    }
}

static void check_version(const char *path, const text *t)
{
    int major = -1, minor = -1, patch = -1;
    char wanted[64];
    for (int i = 0; i < t->lines; i++) {
        sscanf(t->line[i], "#define XG_VERSION_MAJOR %d", &major);
        sscanf(t->line[i], "#define XG_VERSION_MINOR %d", &minor);
        sscanf(t->line[i], "#define XG_VERSION_PATCH %d", &patch);
    }
    snprintf(wanted, sizeof wanted, "xguide.h %d.%d.%d ", major, minor, patch);
    if (!strstr(t->line[0], wanted)) complain(path, 1, "the first line names another version than", wanted);
}

static void check_index(const char *path, const text *t)
{
    for (int half = 0; half < 2; half++) {
        for (int number = 1; number <= SECTIONS; number++) {
            char tag[8];
            int seen = 0;
            snprintf(tag, sizeof tag, half ? "[%d]" : "[A%d]", number);
            for (int i = 0; i < t->lines; i++) {
                const char *at = strstr(t->line[i], tag);
                const char *lead = t->line[i] + strspn(t->line[i], " */");
                /* In code [4] is an array's extent: a tag counts where it leads a comment line, or
                 * follows the other half's tag in the index. */
                if (at && (at == lead || (lead[0] == '[' && lead[1] == 'A'))) seen++;
            }
            if (seen != 2) complain(path, 1, "not exactly once in the index and once on a banner", tag);
        }
    }
}

/* The section of half B that a banner line opens, or 0. */
static int banner(const char *line)
{
    int number = 0;
    return sscanf(line, " *  [%d]", &number) == 1 ? number : 0;
}

static bool is_word(char c) { return isalnum((unsigned char)c) || c == '_'; }

/* Does the text use the name as a whole word? */
static const char *find_word(const char *in, const char *name)
{
    size_t length = strlen(name);
    for (const char *at = in; (at = strstr(at, name)) != NULL; at += length) {
        if ((at == in || !is_word(at[-1])) && !is_word(at[length])) return at;
    }
    return NULL;
}

/* The function that a line declares or defines: the last word before the first '('. */
static bool function_name(const char *line, char *out, size_t size)
{
    const char *paren = strchr(line, '(');
    if (!paren) return false;
    const char *start = paren;
    while (start > line && is_word(start[-1])) start--;
    size_t length = (size_t)(paren - start);
    if (length == 0 || length >= size) return false;
    memcpy(out, start, length);
    out[length] = 0;
    return true;
}

static void check_functions(const char *path, const text *t)
{
    for (int i = 0; i < t->lines; i++) {
        if (strcmp(t->line[i], "{") != 0) continue;
        int end = i + 1;
        while (end < t->lines && t->line[end][0] != '}') end++;
        if (end - i + 1 > FUNCTION_LINES) complain(path, i + 1, "a function above 80 lines", t->line[i - 1]);
    }
}

/* A declaration has a comment on its lines, or directly above the group it stands in. */
static bool documented(const text *t, int line)
{
    for (int i = line; i < t->lines && i < line + 6; i++) {
        if (strstr(t->line[i], "/*")) return true;
        if (strchr(t->line[i], ';')) break;
    }
    for (int i = line - 1; i >= 0; i--) {
        const char *text_line = t->line[i];
        if (text_line[0] == 0) return false;
        if (strstr(text_line, "*/")) return true;
    }
    return false;
}

static int collect_public(const text *t, symbol *out)
{
    int count = 0;
    for (int i = 0; i < t->lines && count < MAX_PUBLIC; i++) {
        if (strncmp(t->line[i], "XG_API ", 7) != 0) continue;
        if (!function_name(t->line[i] + 7, out[count].name, sizeof out[count].name)) continue;
        out[count].line = i + 1;
        out[count++].section = 0;
    }
    return count;
}

/* All text of a folder's C files, joined. */
static char *join_folder(const char *folder)
{
    size_t size = 0;
    char *all = calloc(1, 1);
    DIR *directory = opendir(folder);
    if (!directory) return all;
    for (struct dirent *entry; all && (entry = readdir(directory)) != NULL;) {
        size_t length = strlen(entry->d_name);
        char path[512];
        if (length < 3 || strcmp(entry->d_name + length - 2, ".c") != 0) continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        char *one = slurp(path);
        if (!one) continue;
        char *more = realloc(all, size + strlen(one) + 1);
        if (more) {
            all = more;
            memcpy(all + size, one, strlen(one) + 1);
            size += strlen(one);
        }
        free(one);
    }
    closedir(directory);
    return all;
}

static void check_public(const char *path, const text *t, const symbol *symbols, int count,
                         const char *uses)
{
    for (int i = 0; i < count; i++) {
        if (!documented(t, symbols[i].line - 1)) {
            complain(path, symbols[i].line, "no comment", symbols[i].name);
        }
        if (!find_word(uses, symbols[i].name)) {
            complain(path, symbols[i].line, "no test or example uses it", symbols[i].name);
        }
    }
}

static void check_arrows(const char *path, const text *t, symbol *symbols, int count)
{
    int section = 0;
    for (int i = 0; i < t->lines; i++) {
        char name[64];
        if (banner(t->line[i])) section = banner(t->line[i]);
        if (strncmp(t->line[i], "XG_API_DEF ", 11) != 0) continue;
        if (!function_name(t->line[i] + 11, name, sizeof name)) continue;
        for (int k = 0; k < count; k++) if (!strcmp(symbols[k].name, name)) symbols[k].section = section;
    }
    section = 0;
    for (int i = 0; i < t->lines; i++) {
        if (banner(t->line[i])) section = banner(t->line[i]);
        const char *line = t->line[i] + strspn(t->line[i], " ");
        if (!section || line[0] == '*' || line[0] == '/' || !strstr(line, "xg_")) continue;
        for (int k = 0; k < count; k++) {
            const char *at = symbols[k].section > section ? find_word(line, symbols[k].name) : NULL;
            if (at && at[strlen(symbols[k].name)] == '(') {
                complain(path, i + 1, "calls a later section", symbols[k].name);
            }
        }
    }
}

int main(int argc, char **argv)
{
    static symbol symbols[MAX_PUBLIC];
    text header;
    if (argc != 4 || !read_lines(argv[1], &header)) {
        fprintf(stderr, "usage: check HEADER TESTS_FOLDER EXAMPLES_FOLDER\n");
        return 2;
    }
    char *tests = join_folder(argv[2]), *examples = join_folder(argv[3]);
    size_t size = tests && examples ? strlen(tests) + strlen(examples) + 2 : 0;
    char *uses = size ? malloc(size) : NULL;
    if (!uses) return 2;
    snprintf(uses, size, "%s\n%s", tests, examples);

    int count = collect_public(&header, symbols);
    check_lines(argv[1], &header);
    check_version(argv[1], &header);
    check_index(argv[1], &header);
    check_functions(argv[1], &header);
    check_public(argv[1], &header, symbols, count, uses);
    check_arrows(argv[1], &header, symbols, count);
    printf("%s: %d lines, %d public functions, %d complaints\n", argv[1], header.lines, count, complaints);
    free(uses);
    free(tests);
    free(examples);
    free(header.line);
    free(header.bytes);
    return complaints != 0;
}
