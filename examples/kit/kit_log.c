/* kit_log.c - K11: the run log (CSV and JSON lines), and aligned tables. */
#define _POSIX_C_SOURCE 200809L
#include <ctype.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "kit.h"

/* A text that grows. `failed` is set when memory was short, and stays. */
typedef struct text { char *s; size_t used, room; bool failed; } text;

/* The one place that grows; failure is remembered, so that callers check once, at the end. */
static void put(text *t, const char *s, size_t count)
{
    if (t->failed) return;
    if (t->used + count + 1 > t->room) {
        size_t more = 2 * (t->used + count + 1);
        char  *larger = (char *)realloc(t->s, more);
        if (larger == NULL) {
            t->failed = true;
            return;
        }
        t->s = larger;
        t->room = more;
    }
    memcpy(t->s + t->used, s, count);
    t->used += count;
    t->s[t->used] = '\0';
}

static void put_text(text *t, const char *s) { put(t, s, strlen(s)); }

/* In quotes where a comma, a quote or a line end asks for them. */
static void put_csv(text *t, const char *s)
{
    if (strpbrk(s, ",\"\r\n") == NULL && s[0] != ' ') {
        put_text(t, s);
        return;
    }
    put_text(t, "\"");
    for (; *s != '\0'; s++) put(t, *s == '"' ? "\"\"" : s, *s == '"' ? 2 : 1);
    put_text(t, "\"");
}

/* Bytes over 127 pass: JSON is UTF-8, and so are our texts. */
static void put_json(text *t, const char *s)
{
    put_text(t, "\"");
    for (; *s != '\0'; s++) {
        unsigned char code = (unsigned char)*s;
        char escape[8];
        if (code == '"' || code == '\\') snprintf(escape, sizeof escape, "\\%c", code);
        else if (code < 32) snprintf(escape, sizeof escape, "\\u%04x", code);
        else snprintf(escape, sizeof escape, "%c", code);
        put_text(t, escape);
    }
    put_text(t, "\"");
}

/* --------------------------------------------------------------------------------------- log -- */

/* The first line of the CSV; also what a resumed run is compared with. */
static void header_line(const kit_log *log, text *t)
{
    for (int i = 0; i < log->columns; i++) {
        if (i > 0) put_text(t, ",");
        put_csv(t, log->column[i]);
    }
    put_text(t, "\n");
}

/* The number that starts a CSV line, or follows the first colon of a JSON line. */
static double first_number(const char *line, bool json)
{
    const char *colon = json ? strchr(line, ':') : NULL;
    return strtod(colon != NULL ? colon + 1 : line, NULL);
}

/* Drops the half line at the end and the rows later than resume_at, and puts the file back. */
static bool trim(const char *path, bool json, const char *header, double resume_at, xg_error *error)
{
    unsigned char *bytes = NULL;
    size_t count = 0;
    if (!kit_is_file(path)) return true;                 /* nothing to go on with: starts afresh */
    if (!kit_read_file(path, (size_t)1 << 30, &bytes, &count, error)) return false;
    text kept = { NULL, 0, 0, false };
    bool fine = true, first = true;
    put_text(&kept, "");
    for (char *line = (char *)bytes; *line != '\0' && fine;) {
        char *end = strchr(line, '\n');
        if (end == NULL) break;                          /* the run stopped while writing it */
        size_t length = (size_t)(end - line) + 1;
        if (first && !json) {
            char name[100];
            fine = (strlen(header) == length && memcmp(line, header, length) == 0)
                || kit_fail(error, XG_ERR_ARGUMENT, "%s has other columns: start a new run in "
                            "another folder", kit_short_path(path, name));
            put(&kept, line, length);
        } else if (first_number(line, json) <= resume_at) {
            put(&kept, line, length);
        }
        first = false;
        line = end + 1;
    }
    free(bytes);
    if (fine && kept.failed) fine = kit_fail(error, XG_ERR_MEMORY, "out of memory for a run log");
    fine = fine && kit_write_file(path, kept.s, kept.used, error);
    free(kept.s);
    return fine;
}

/* Opens one of the two files, trimmed when a run goes on. A file that is new gets its heading. */
static FILE *open_one(const char *folder, const char *name, const char *ending, bool json,
                      const char *header, double resume_at, xg_error *error)
{
    char file[256], path[4096], shown[100];
    snprintf(file, sizeof file, "%.200s%s", name, ending);
    if (!kit_join(path, sizeof path, folder, file, error)) return NULL;
    if (resume_at >= 0 && !trim(path, json, header, resume_at, error)) return NULL;
    FILE *out = fopen(path, resume_at >= 0 ? "ab" : "wb");
    if (out == NULL) {
        kit_fail(error, XG_ERR_IO, "cannot write %s: check the folder",
                 kit_short_path(path, shown));
        return NULL;
    }
    fseek(out, 0, SEEK_END);
    if (!json && ftell(out) == 0) fputs(header, out);
    fflush(out);
    return out;
}

static void free_log(kit_log *log)
{
    for (int i = 0; i < log->columns; i++) {
        free(log->column[i]);
        free(log->value[i]);
    }
    free(log->column);
    free(log->value);
    free(log->quoted);
    if (log->csv != NULL) fclose(log->csv);
    if (log->json != NULL) fclose(log->json);
    memset(log, 0, sizeof *log);
}

bool kit_log_open(kit_log *log, const char *folder, const char *name, const char *const *columns,
                  int count, double resume_at, xg_error *error)
{
    memset(log, 0, sizeof *log);
    if (count < 1 || count > 1000) {
        return kit_fail(error, XG_ERR_ARGUMENT, "a run log needs 1 to 1000 columns");
    }
    log->column = (char **)calloc((size_t)count, sizeof *log->column);
    log->value = (char **)calloc((size_t)count, sizeof *log->value);
    log->quoted = (bool *)calloc((size_t)count, sizeof *log->quoted);
    bool fine = log->column != NULL && log->value != NULL && log->quoted != NULL;
    log->columns = fine ? count : 0;
    for (int i = 0; i < count && fine; i++) {
        log->column[i] = kit_copy_text(columns[i]);
        fine = log->column[i] != NULL;
    }
    text header = { NULL, 0, 0, false };
    if (fine) header_line(log, &header);
    fine = fine && !header.failed;
    if (!fine) kit_fail(error, XG_ERR_MEMORY, "out of memory for a run log");
    fine = fine && kit_make_folder(folder, error);
    if (fine) log->csv = open_one(folder, name, ".csv", false, header.s, resume_at, error);
    if (log->csv != NULL) {
        log->json = open_one(folder, name, ".jsonl", true, header.s, resume_at, error);
    }
    fine = fine && log->json != NULL;
    free(header.s);
    if (!fine) free_log(log);
    return fine;
}

/* Stores a value of the next row. An unknown column makes the row fail when it is written. */
static void set_value(kit_log *log, const char *column, const char *value, bool quoted)
{
    for (int i = 0; i < log->columns; i++) {
        if (strcmp(log->column[i], column) != 0) continue;
        free(log->value[i]);
        log->value[i] = kit_copy_text(value);
        log->quoted[i] = quoted;
        if (log->value[i] == NULL) log->failed = true;
        for (char *c = log->value[i]; c != NULL && *c != '\0'; c++) {
            if (*c == '\n' || *c == '\r') *c = ' ';       /* one row, one line */
        }
        return;
    }
    log->failed = true;
}

void kit_log_number(kit_log *log, const char *column, double value)
{
    char number[40];
    if (!isfinite(value)) number[0] = '\0';              /* neither CSV nor JSON can say NaN */
    else snprintf(number, sizeof number, "%.9g", value);
    set_value(log, column, number, false);
}

void kit_log_text(kit_log *log, const char *column, const char *value)
{
    set_value(log, column, value, true);
}

/* One call writes the line and one hands it to the system: a kill leaves whole lines behind. */
static bool write_line(FILE *out, const text *line, xg_error *error)
{
    if (fwrite(line->s, 1, line->used, out) == line->used && fflush(out) == 0) return true;
    return kit_fail(error, XG_ERR_IO, "cannot write to the run log; is the disk full?");
}

bool kit_log_row(kit_log *log, xg_error *error)
{
    text csv = { NULL, 0, 0, false }, json = { NULL, 0, 0, false };
    bool fine = !log->failed, some = false;
    if (!fine) kit_fail(error, XG_ERR_NAME, "a value was logged for a column that does not exist");
    put_text(&json, "{");
    for (int i = 0; i < log->columns; i++) {
        const char *value = log->value[i];
        if (i > 0) put_text(&csv, ",");
        if (value == NULL) continue;
        put_csv(&csv, value);
        put_text(&json, some ? ", " : "");
        some = true;
        put_json(&json, log->column[i]);
        put_text(&json, ": ");
        if (log->quoted[i]) put_json(&json, value);
        else put_text(&json, value[0] != '\0' ? value : "null");
        free(log->value[i]);
        log->value[i] = NULL;
    }
    put_text(&csv, "\n");
    put_text(&json, "}\n");
    log->failed = false;
    if (fine && (csv.failed || json.failed)) {
        fine = kit_fail(error, XG_ERR_MEMORY, "out of memory for a run log");
    }
    fine = fine && write_line(log->csv, &csv, error) && write_line(log->json, &json, error);
    free(csv.s);
    free(json.s);
    return fine;
}

bool kit_log_close(kit_log *log, xg_error *error)
{
    bool fine = true;
    if (log->csv != NULL) fine = fclose(log->csv) == 0;
    if (log->json != NULL) fine = (fclose(log->json) == 0) && fine;
    log->csv = log->json = NULL;
    free_log(log);
    return fine || kit_fail(error, XG_ERR_IO, "cannot finish the run log; is the disk full?");
}

/* ------------------------------------------------------------------------------------ tables -- */

/* Failures are remembered and told by kit_table_print: tables are built in long rows of calls. */
void kit_table_cell(kit_table *table, const char *format, ...)
{
    char cell[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(cell, sizeof cell, format, arguments);
    va_end(arguments);
    if (table->cells == table->room) {
        int    more = table->room == 0 ? 64 : table->room * 2;
        char **larger = (char **)realloc(table->cell, (size_t)more * sizeof *larger);
        if (larger == NULL) {
            table->failed = true;
            return;
        }
        table->cell = larger;
        table->room = more;
    }
    char *copy = kit_copy_text(cell);
    if (copy == NULL) table->failed = true;
    else {
        table->cell[table->cells++] = copy;
        table->in_row++;
    }
}

void kit_table_end_row(kit_table *table)
{
    if (table->columns == 0) table->columns = table->in_row;
    if (table->in_row != table->columns || table->in_row == 0) table->failed = true;
    table->in_row = 0;
}

/* Does it start like a number? "12 %" and "3.1 +- 0.2" align as numbers too; so does "-". */
static bool looks_numeric(const char *cell)
{
    if (strcmp(cell, "-") == 0 || cell[0] == '\0') return true;
    if (*cell == '-' || *cell == '+') cell++;
    return isdigit((unsigned char)*cell) != 0;
}

/* Characters, not bytes: UTF-8 continuation bytes take no room. */
static int shown_width(const char *cell)
{
    int width = 0;
    for (; *cell != '\0'; cell++) if (((unsigned char)*cell & 0xC0) != 0x80) width++;
    return width;
}

static void print_cell(FILE *out, const char *cell, int width, bool right)
{
    int blank = width - shown_width(cell);
    fprintf(out, "%*s%s%*s", right ? blank : 0, "", cell, right ? 0 : blank, "");
}

/* The line under the heading. */
static void print_rule(FILE *out, const int *width, const bool *right, int columns, bool markdown)
{
    for (int c = 0; c < columns; c++) {
        fputs(markdown ? "|" : c > 0 ? "  " : "", out);
        for (int i = 0; i < width[c] + (markdown ? 2 : 0); i++) {
            fputc(markdown && right[c] && i == width[c] + 1 ? ':' : '-', out);
        }
    }
    fputs(markdown ? "|\n" : "\n", out);
}

/* Two passes: the widths must be known before the first row is written. */
bool kit_table_print(const kit_table *table, FILE *out, bool markdown)
{
    int columns = table->columns, rows = columns > 0 ? table->cells / columns : 0;
    if (table->failed || table->in_row != 0 || rows == 0) return false;
    int  *width = (int *)calloc((size_t)columns, sizeof *width);
    bool *right = (bool *)calloc((size_t)columns, sizeof *right);
    if (width == NULL || right == NULL) {
        free(width);
        free(right);
        return false;
    }
    for (int c = 0; c < columns; c++) {
        right[c] = rows > 1;
        for (int r = 0; r < rows; r++) {
            const char *cell = table->cell[r * columns + c];
            if (shown_width(cell) > width[c]) width[c] = shown_width(cell);
            if (r > 0 && !looks_numeric(cell)) right[c] = false;
        }
    }
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < columns; c++) {
            fputs(markdown ? "| " : c > 0 ? "  " : "", out);
            print_cell(out, table->cell[r * columns + c], width[c], right[c]);
            if (markdown) fputc(' ', out);
        }
        fputs(markdown ? "|\n" : "\n", out);
        if (r == 0) print_rule(out, width, right, columns, markdown);
    }
    free(width);
    free(right);
    return true;
}

void kit_table_free(kit_table *table)
{
    for (int i = 0; i < table->cells; i++) free(table->cell[i]);
    free(table->cell);
    memset(table, 0, sizeof *table);
}
