/* scratch.h - a folder of its own for a test program that writes files. */
#ifndef SCRATCH_H
#define SCRATCH_H

#include "test.h"

#include "kit.h"

/* The folder for files of this run, removed at the end of main by remove_scratch. */
static char scratch[64];

static inline const char *in_scratch(const char *name, char out[256])
{
    if (scratch[0] == '\0') {
        strcpy(scratch, "/tmp/test_kit_XXXXXX");
        if (mkdtemp(scratch) == NULL) {
            printf("  cannot make a folder in /tmp\n");
            exit(1);
        }
    }
    snprintf(out, 256, "%s/%s", scratch, name);
    return out;
}

static inline void write_text(const char *name, const char *text)
{
    char path[256], folder[256];
    in_scratch(name, path);
    strcpy(folder, path);
    *strrchr(folder, '/') = '\0';
    REQUIRE(kit_make_folder(folder, NULL));
    REQUIRE(kit_write_file(path, text, strlen(text), NULL));
}

static inline void remove_tree(const char *path)
{
    kit_names names;
    char inner[512];
    for (int folders = 0; folders < 2; folders++) {
        if (!kit_list_folder(path, folders == 1, &names, NULL)) return;
        for (int i = 0; i < names.count; i++) {
            if (!kit_join(inner, sizeof inner, path, names.name[i], NULL)) continue;
            if (folders == 1) remove_tree(inner);
            else remove(inner);
        }
        kit_names_free(&names);
    }
    remove(path);
}

static inline void remove_scratch(void)
{
    if (scratch[0] != '\0') remove_tree(scratch);
}

/* A picture of one colour, as a PNG in the scratch folder. */
static inline void write_picture(const char *name, int w, int h, unsigned colour)
{
    char path[256];
    kit_picture p;
    write_text(name, "");
    REQUIRE(kit_picture_new(&p, w, h, colour, NULL));
    CHECK(kit_picture_save(&p, in_scratch(name, path), NULL));
    kit_picture_free(&p);
}

/* The error holds this code, and its sentence this piece of text. */
#define CHECK_SAYS(error, expected, piece)                                                        \
    do { CHECK_ERROR(&(error), expected);                                                         \
         if (strstr((error).text, piece) == NULL) {                                               \
             test_fail_(__FILE__, __LINE__, "the sentence holds " #piece);                        \
             printf("      it is: %s\n", (error).text); } } while (0)

static inline xg_error no_error(void)
{
    xg_error error;
    memset(&error, 0, sizeof error);
    return error;
}

#endif
