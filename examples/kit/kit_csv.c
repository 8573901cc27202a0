/* kit_csv.c - K2: text tables. The file is read whole and cut up in place: quotes and separators
 * are overwritten, and the cells are pointers into it. */
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kit.h"

#define CSV_LIMIT ((size_t)256 << 20)     /* bytes of a file; annotation tables are far smaller */

/* Where the cutting stands. */
typedef struct cutter {
    kit_csv *csv;
    char    *at;           /* next character to read                                              */
    char     separator;
    int      line;         /* of `at`, from 1                                                     */
    int      cells, room;  /* in csv->cell                                                        */
    int      row_room;     /* of csv->line                                                        */
    xg_error *error;
} cutter;

/* Every complaint starts with the file and the line, as a compiler's does. */
static bool fail_at(const kit_csv *csv, int line, xg_error *error, const char *what)
{
    char text[100];
    return kit_fail(error, XG_ERR_FORMAT, "%s line %d: %s", kit_short_path(csv->path, text), line,
                    what);
}

static bool no_memory(const kit_csv *csv, xg_error *error)
{
    char text[100];
    return kit_fail(error, XG_ERR_MEMORY, "out of memory for the table %s",
                    kit_short_path(csv->path, text));
}

/* Cells are one long array; rows are found by multiplication, since all are of one length. */
static bool add_cell(cutter *c, char *cell)
{
    if (c->cells == c->room) {
        if (c->room > INT_MAX / 2) return no_memory(c->csv, c->error);
        int    more = c->room == 0 ? 256 : c->room * 2;
        char **larger = (char **)realloc(c->csv->cell, (size_t)more * sizeof *larger);
        if (larger == NULL) return no_memory(c->csv, c->error);
        c->csv->cell = larger;
        c->room = more;
    }
    c->csv->cell[c->cells++] = cell;
    return true;
}

static bool add_row(cutter *c, int line)
{
    kit_csv *csv = c->csv;
    if (csv->rows == c->row_room) {
        int  more = c->row_room == 0 ? 64 : c->row_room * 2;
        int *larger = (int *)realloc(csv->line, (size_t)more * sizeof *larger);
        if (larger == NULL) return no_memory(csv, c->error);
        csv->line = larger;
        c->row_room = more;
    }
    csv->line[csv->rows++] = line;
    return true;
}

/* What may follow a cell. */
static bool ends_cell(const cutter *c, char k)
{
    return k == c->separator || k == '\n' || k == '\r' || k == '\0';
}

/* A quoted cell: moves its text to the front, "" becomes ". Leaves `at` after the closing quote. */
static bool cut_quoted(cutter *c, char **cell)
{
    int   first = c->line;
    char *to = ++c->at;
    *cell = to;
    for (;;) {
        char k = *c->at;
        if (k == '\0') return fail_at(c->csv, first, c->error, "a quoted cell is never closed");
        if (k == '\n') c->line++;
        c->at++;
        if (k == '"') {
            if (*c->at != '"') break;
            c->at++;
        }
        *to++ = k;
    }
    if (!ends_cell(c, *c->at)) {
        return fail_at(c->csv, c->line, c->error,
                       "text follows a closing quote; write \"\" for a quote inside a cell");
    }
    *to = '\0';            /* at the closing quote or before it, so *at is untouched */
    return true;
}

/* One cell. *end gets the character that ended it: separator, line end or 0. */
static bool cut_cell(cutter *c, char *end)
{
    char *cell = c->at;
    if (*c->at == '"') {
        if (!cut_quoted(c, &cell)) return false;
    } else {
        while (!ends_cell(c, *c->at)) c->at++;
    }
    char *stop = c->at;
    *end = *stop;
    if (*stop != '\0') c->at++;
    if (*end == '\r') {
        if (*c->at == '\n') c->at++;
        *end = '\n';
    }
    if (*end == '\n') c->line++;
    *stop = '\0';
    if (c->separator == ' ') while (*end == ' ' && *c->at == ' ') c->at++;
    return add_cell(c, cell);
}

/* One line that is not blank, checked against the width of the first. */
static bool cut_row(cutter *c)
{
    kit_csv *csv = c->csv;
    int  line = c->line, before = c->cells;
    char end = c->separator;
    if (c->separator == ' ') while (*c->at == ' ') c->at++;
    while (end == c->separator) {
        if (c->separator == ' ' && (*c->at == '\n' || *c->at == '\r' || *c->at == '\0')
            && c->cells > before) {                     /* blanks at the end of a line */
            if (*c->at == '\r') c->at++;
            if (*c->at == '\n') { c->at++; c->line++; }
            break;
        }
        if (!cut_cell(c, &end)) return false;
    }
    int found = c->cells - before;
    if (csv->rows == 0) csv->columns = found;
    if (found != csv->columns) {
        char what[80];
        snprintf(what, sizeof what, "%d cells where the first line has %d", found, csv->columns);
        return fail_at(csv, line, c->error, what);
    }
    return add_row(c, line);
}

/* A zero byte would end the text early and unnoticed, so it is refused at the start. */
bool kit_csv_read(kit_csv *csv, const char *path, char separator, bool header, xg_error *error)
{
    memset(csv, 0, sizeof *csv);
    size_t count = 0;
    unsigned char *bytes = NULL;
    if (!kit_read_file(path, CSV_LIMIT, &bytes, &count, error)) return false;
    csv->text = (char *)bytes;
    csv->path = kit_copy_text(path);
    csv->header = header;
    bool fine = csv->path != NULL || kit_fail(error, XG_ERR_MEMORY, "out of memory for a path");
    if (fine && memchr(bytes, 0, count) != NULL) {
        fine = fail_at(csv, 1, error, "a zero byte; this is not a text table");
    }
    cutter c = { csv, csv->text, separator, 1, 0, 0, 0, error };
    if (count >= 3 && memcmp(bytes, "\xEF\xBB\xBF", 3) == 0) c.at += 3;      /* byte order mark */
    while (fine && *c.at != '\0') {
        if (*c.at == '\n' || *c.at == '\r') {           /* a blank line */
            if (*c.at == '\n') c.line++;
            c.at++;
        } else {
            fine = cut_row(&c);
        }
    }
    if (fine && header && csv->rows == 0) fine = fail_at(csv, 1, error, "the table is empty");
    if (!fine) kit_csv_free(csv);
    return fine;
}

void kit_csv_free(kit_csv *csv)
{
    free(csv->path);
    free(csv->text);
    free(csv->cell);
    free(csv->line);
    memset(csv, 0, sizeof *csv);
}

/* Lists the columns there are: mostly the name is only spelt otherwise. */
int kit_csv_column(const kit_csv *csv, const char *name, xg_error *error)
{
    char known[120] = "";
    for (int i = 0; i < csv->columns; i++) {
        const char *column = kit_csv_text(csv, 0, i);
        if (strcmp(column, name) == 0) return i;
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i > 0 ? ", " : "", column);
    }
    char text[100];
    kit_fail(error, XG_ERR_FORMAT, "%s line 1: no column '%s'; there are: %s",
             kit_short_path(csv->path, text), name, known);
    return -1;
}

const char *kit_csv_text(const kit_csv *csv, int row, int column)
{
    return csv->cell[(size_t)row * (size_t)csv->columns + (size_t)column];
}

/* The cell's column by name or number, and what stands there, for an error sentence. */
static bool fail_cell(const kit_csv *csv, int row, int column, const char *wanted, xg_error *error)
{
    char what[160], name[40];
    if (csv->header) snprintf(name, sizeof name, "'%.30s'", kit_csv_text(csv, 0, column));
    else             snprintf(name, sizeof name, "%d", column + 1);
    snprintf(what, sizeof what, "column %s should be %s, not '%.40s'", name, wanted,
             kit_csv_text(csv, row, column));
    return fail_at(csv, csv->line[row], error, what);
}

/* The whole cell must be the number: "12px" is a mistake somewhere, not twelve. */
bool kit_csv_int(const kit_csv *csv, int row, int column, int low, int high, int *out,
                 xg_error *error)
{
    const char *text = kit_csv_text(csv, row, column);
    char *end = NULL;
    long  value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || value < low || value > high) {
        char wanted[64];
        if (high == INT_MAX) snprintf(wanted, sizeof wanted, "a whole number from %d", low);
        else snprintf(wanted, sizeof wanted, "a whole number from %d to %d", low, high);
        return fail_cell(csv, row, column, wanted, error);
    }
    *out = (int)value;
    return true;
}

bool kit_csv_number(const kit_csv *csv, int row, int column, double *out, xg_error *error)
{
    const char *text = kit_csv_text(csv, row, column);
    char  *end = NULL;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(value)) {
        return fail_cell(csv, row, column, "a number", error);
    }
    *out = value;
    return true;
}
