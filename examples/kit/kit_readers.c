/* kit_readers.c - K4: finds photographs, their labels, splits, boxes. Nothing is decoded here. */
#define _POSIX_C_SOURCE 200809L
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "kit.h"

#define PATH_ROOM 4096

/* A box as it is read, before boxes are sorted by photograph. */
typedef struct loose_box { int photo; xg_box box; char *name; } loose_box;

/* What grows while a folder is read. */
typedef struct builder {
    kit_photos *photos;
    int         room;
    loose_box  *box;
    int         boxes, box_room;
    xg_error   *error;
} builder;

static bool no_memory(xg_error *error)
{
    return kit_fail(error, XG_ERR_MEMORY, "out of memory for a list of photographs");
}

/* ----------------------------------------------------------------------------------- growing -- */

/* Makes room for one more element of the given size. */
static bool grow(void **items, int count, int *room, size_t size, xg_error *error)
{
    if (count < *room) return true;
    if (*room > INT_MAX / 2) return no_memory(error);
    int   more = *room == 0 ? 64 : *room * 2;
    void *larger = realloc(*items, (size_t)more * size);
    if (larger == NULL) return no_memory(error);
    *items = larger;
    *room = more;
    return true;
}

/* Adds a photograph called `name` in the folder; NULL on failure. */
static kit_photo *add_photo(builder *b, const char *name, int label, kit_split split)
{
    char  path[PATH_ROOM];
    void *items = b->photos->photo;
    bool  fine = grow(&items, b->photos->count, &b->room, sizeof(kit_photo), b->error);
    b->photos->photo = (kit_photo *)items;
    if (!fine || !kit_join(path, sizeof path, b->photos->folder, name, b->error)) return NULL;
    kit_photo *photo = &b->photos->photo[b->photos->count];
    memset(photo, 0, sizeof *photo);
    photo->path = kit_copy_text(path);
    photo->name = kit_copy_text(name);
    photo->label = label;
    photo->place = -1;
    photo->group = label < 0 ? 0 : label;
    photo->split = split;
    b->photos->count++;                 /* counted before the check: freed with the others */
    if (photo->path == NULL || photo->name == NULL) {
        no_memory(b->error);
        return NULL;
    }
    return photo;
}

static bool add_box(builder *b, int photo, xg_box box, const char *name)
{
    void *items = b->box;
    bool  fine = grow(&items, b->boxes, &b->box_room, sizeof(loose_box), b->error);
    b->box = (loose_box *)items;
    if (!fine) return false;
    loose_box *added = &b->box[b->boxes];
    added->photo = photo;
    added->box = box;
    added->name = kit_copy_text(name);
    if (added->name == NULL) return no_memory(b->error);
    b->boxes++;
    return true;
}

/* Hands the boxes over to the photographs, each photograph's together, in the order read. */
static bool settle_boxes(builder *b)
{
    kit_photos *photos = b->photos;
    if (b->boxes == 0) return true;
    photos->box = (xg_box *)calloc((size_t)b->boxes, sizeof *photos->box);
    photos->box_name = (char **)calloc((size_t)b->boxes, sizeof *photos->box_name);
    if (photos->box == NULL || photos->box_name == NULL) return no_memory(b->error);
    for (int i = 0; i < b->boxes; i++) photos->photo[b->box[i].photo].boxes++;
    for (int i = 0, next = 0; i < photos->count; i++) {
        photos->photo[i].first_box = next;
        next += photos->photo[i].boxes;
        photos->photo[i].annotated = photos->photo[i].boxes > 0;
        photos->photo[i].boxes = 0;                      /* counted up again below */
    }
    for (int i = 0; i < b->boxes; i++) {
        kit_photo *photo = &photos->photo[b->box[i].photo];
        int at = photo->first_box + photo->boxes++;
        photos->box[at] = b->box[i].box;
        photos->box_name[at] = b->box[i].name;
        b->box[i].name = NULL;                           /* it has changed hands */
    }
    photos->boxes = b->boxes;
    return true;
}

static bool name_classes(kit_photos *photos, const char *const *name, int count, xg_error *error)
{
    photos->class_name = (char **)calloc((size_t)count + 1, sizeof *photos->class_name);
    if (photos->class_name == NULL) return no_memory(error);
    photos->classes = photos->groups = count;
    for (int i = 0; i < count; i++) {
        photos->class_name[i] = kit_copy_text(name[i]);
        if (photos->class_name[i] == NULL) return no_memory(error);
    }
    return true;
}

/* -------------------------------------------------------------------------------- Waterbirds -- */

/* Columns of metadata.csv that are used. */
typedef struct bird_columns { int id, file, y, split, place; } bird_columns;

/* All of them are looked up before a row is read: one sentence tells what is missing. */
static bool find_columns(const kit_csv *csv, bird_columns *c, xg_error *error)
{
    c->id = kit_csv_column(csv, "img_id", error);
    c->file = kit_csv_column(csv, "img_filename", error);
    c->y = kit_csv_column(csv, "y", error);
    c->split = kit_csv_column(csv, "split", error);
    c->place = kit_csv_column(csv, "place", error);
    return c->id >= 0 && c->file >= 0 && c->y >= 0 && c->split >= 0 && c->place >= 0;
}

/* One row of metadata.csv. That the picture is there is checked now, not hours into a training. */
static bool add_bird(builder *b, const kit_csv *csv, const bird_columns *c, int row, bool by_place,
                     int *id)
{
    int y = 0, split = 0, place = 0;
    if (!kit_csv_int(csv, row, c->id, 0, 10000000, id, b->error)
        || !kit_csv_int(csv, row, c->y, 0, 1, &y, b->error)
        || !kit_csv_int(csv, row, c->split, 0, 2, &split, b->error)
        || !kit_csv_int(csv, row, c->place, 0, 1, &place, b->error)) {
        return false;
    }
    kit_photo *photo = add_photo(b, kit_csv_text(csv, row, c->file), by_place ? place : y,
                                 (kit_split)split);
    if (photo == NULL) return false;
    photo->place = place;
    photo->group = 2 * y + place;
    if (!kit_is_file(photo->path)) {
        char list[100], picture[100];
        return kit_fail(b->error, XG_ERR_IO, "%s line %d: there is no picture %s",
                        kit_short_path(csv->path, list), csv->line[row],
                        kit_short_path(photo->path, picture));
    }
    return true;
}

/* Boxes are listed by id as x y width height; ids that no photograph has are passed over. */
static bool read_bird_boxes(builder *b, const int *photo_of_id, int ids)
{
    char    path[PATH_ROOM];
    kit_csv csv;
    const char *folder = b->photos->folder;
    if (!kit_join(path, sizeof path, folder, "bounding_boxes.txt", b->error)) return false;
    if (!kit_is_file(path)) return true;                 /* labels alone are worth having */
    if (!kit_csv_read(&csv, path, ' ', false, b->error)) return false;
    bool fine = csv.columns == 5 || csv.rows == 0
             || kit_fail(b->error, XG_ERR_FORMAT, "bounding_boxes.txt should have five columns "
                         "(id x y width height), not %d", csv.columns);
    for (int row = 0; row < csv.rows && fine; row++) {
        int    id = 0;
        double v[4];
        fine = kit_csv_int(&csv, row, 0, 0, INT_MAX, &id, b->error);
        for (int k = 0; k < 4; k++) {
            fine = fine && kit_csv_number(&csv, row, k + 1, &v[k], b->error);
        }
        if (!fine || id >= ids || photo_of_id[id] < 0) continue;
        xg_box box = { v[0], v[1], v[0] + v[2], v[1] + v[3] };
        fine = add_box(b, photo_of_id[id], box, "bird");
    }
    kit_csv_free(&csv);
    return fine;
}

/* Photograph i is row i + 1: rows are added in order and none is left out. */
static bool read_birds(builder *b, const char *metadata, bool by_place)
{
    static const char *const bird[] = { "landbird", "waterbird" };
    static const char *const place[] = { "land", "water" };
    kit_csv      csv;
    bird_columns c;
    if (!name_classes(b->photos, by_place ? place : bird, 2, b->error)) return false;
    b->photos->groups = 4;
    if (!kit_csv_read(&csv, metadata, ',', true, b->error)) return false;
    int  ids = 0, *id = (int *)calloc((size_t)csv.rows, sizeof *id), *photo_of_id = NULL;
    bool fine = id != NULL || no_memory(b->error);
    fine = fine && find_columns(&csv, &c, b->error);
    for (int row = 1; row < csv.rows && fine; row++) {
        fine = add_bird(b, &csv, &c, row, by_place, &id[row]);
        if (fine && id[row] >= ids) ids = id[row] + 1;
    }
    if (fine) {
        photo_of_id = (int *)malloc(((size_t)ids + 1) * sizeof *photo_of_id);
        fine = photo_of_id != NULL || no_memory(b->error);
    }
    if (fine) {
        for (int i = 0; i < ids; i++) photo_of_id[i] = -1;
        for (int row = 1; row < csv.rows; row++) photo_of_id[id[row]] = row - 1;
        fine = read_bird_boxes(b, photo_of_id, ids);
    }
    free(photo_of_id);
    free(id);
    kit_csv_free(&csv);
    return fine;
}

/* ----------------------------------------------------------------------------------- folders -- */

/* By the name's ending; whether it is one is seen when it is decoded. */
static bool is_picture(const char *name)
{
    static const char *const ending[] = { ".png", ".jpg", ".jpeg" };
    size_t length = strlen(name);
    for (size_t i = 0; i < sizeof ending / sizeof *ending; i++) {
        size_t n = strlen(ending[i]);
        if (length > n && strcasecmp(name + length - n, ending[i]) == 0) return true;
    }
    return false;
}

/* Adds every picture of folder/inner as inner/NAME (inner "" means the folder itself). */
static bool add_pictures(builder *b, const char *inner, int label, kit_split split)
{
    char      path[PATH_ROOM], name[PATH_ROOM];
    kit_names files;
    if (!kit_join(path, sizeof path, b->photos->folder, inner, b->error)) return false;
    if (!kit_list_folder(path, false, &files, b->error)) return false;
    bool fine = true;
    for (int i = 0; i < files.count && fine; i++) {
        if (!is_picture(files.name[i])) continue;
        fine = kit_join(name, sizeof name, inner, files.name[i], b->error)
            && add_photo(b, name, label, split) != NULL;
    }
    kit_names_free(&files);
    return fine;
}

/* Cuts photographs first..count-1, all of one class, into splits: in a random order the first go to
 * validation, the next to the test, the rest to training. */
static bool cut_class(builder *b, int first, const kit_photos_options *o, xg_rng *rng)
{
    int  n = b->photos->count - first;
    int *turn = (int *)malloc(((size_t)n + 1) * sizeof *turn);
    if (turn == NULL) return no_memory(b->error);
    for (int i = 0; i < n; i++) turn[i] = first + i;
    xg_rng_shuffle(rng, turn, n);
    int val = (int)(o->val * n), test = (int)(o->test * n);
    for (int i = 0; i < n; i++) {
        b->photos->photo[turn[i]].split = i < val ? KIT_VAL : i < val + test ? KIT_TEST : KIT_TRAIN;
    }
    free(turn);
    return true;
}

static int find_class(const kit_photos *photos, const char *name)
{
    for (int i = 0; i < photos->classes; i++) {
        if (strcmp(photos->class_name[i], name) == 0) return i;
    }
    return -1;
}

/* Classes are the sub-folders in byte order, so labels are the same on every machine. */
static bool read_class_folders(builder *b, const kit_names *folders, const kit_photos_options *o)
{
    xg_rng rng = xg_rng_seed(o->seed);
    if (!name_classes(b->photos, (const char *const *)folders->name, folders->count, b->error)) {
        return false;
    }
    for (int i = 0; i < folders->count; i++) {
        int first = b->photos->count;
        if (!add_pictures(b, folders->name[i], i, KIT_TRAIN)) return false;
        if (b->photos->count == first) {
            char text[100];
            return kit_fail(b->error, XG_ERR_FORMAT, "the class folder %s holds no pictures (.png "
                            ".jpg .jpeg)", kit_short_path(folders->name[i], text));
        }
        if (!cut_class(b, first, o, &rng)) return false;
    }
    return true;
}

/* train/ names the classes; the others may lack some, not add any. */
static bool read_split_folders(builder *b)
{
    static const char *const split_name[] = { "train", "val", "test" };
    for (int split = 0; split < 3; split++) {
        char      path[PATH_ROOM];
        kit_names folders;
        const char *name = split_name[split];
        if (!kit_join(path, sizeof path, b->photos->folder, name, b->error)) return false;
        if (!kit_is_folder(path)) continue;
        if (!kit_list_folder(path, true, &folders, b->error)) return false;
        bool fine = split > 0 || name_classes(b->photos, (const char *const *)folders.name,
                                              folders.count, b->error);
        for (int i = 0; i < folders.count && fine; i++) {
            char inner[PATH_ROOM];
            int  label = find_class(b->photos, folders.name[i]);
            fine = label >= 0
                || kit_fail(b->error, XG_ERR_FORMAT, "%s/%.60s: there is no such class in train",
                            name, folders.name[i]);
            fine = fine && kit_join(inner, sizeof inner, name, folders.name[i], b->error)
                && add_pictures(b, inner, label, (kit_split)split);
        }
        kit_names_free(&folders);
        if (!fine) return false;
    }
    return true;
}

/* --------------------------------------------------------------------------------- boxes.csv -- */

typedef struct name_entry { const char *name; int photo; } name_entry;

static int by_name(const void *a, const void *b)
{
    return strcmp(((const name_entry *)a)->name, ((const name_entry *)b)->name);
}

/* One row of boxes.csv; a name that is unknown is a typing error and is said so. */
static bool add_box_row(builder *b, const kit_csv *csv, int row, const int column[6],
                        const name_entry *list)
{
    char       text[100];
    double     v[4];
    name_entry key = { kit_csv_text(csv, row, column[0]), 0 };
    const name_entry *found = (const name_entry *)bsearch(&key, list, (size_t)b->photos->count,
                                                          sizeof key, by_name);
    if (found == NULL) {
        return kit_fail(b->error, XG_ERR_FORMAT, "%s line %d: there is no picture '%.60s' here",
                        kit_short_path(csv->path, text), csv->line[row], key.name);
    }
    for (int k = 0; k < 4; k++) {
        if (!kit_csv_number(csv, row, column[2 + k], &v[k], b->error)) return false;
    }
    if (v[2] <= v[0] || v[3] <= v[1]) {
        return kit_fail(b->error, XG_ERR_FORMAT, "%s line %d: the box %g,%g,%g,%g is empty; it "
                        "should be x0,y0,x1,y1", kit_short_path(csv->path, text), csv->line[row],
                        v[0], v[1], v[2], v[3]);
    }
    xg_box box = { v[0], v[1], v[2], v[3] };
    return add_box(b, found->photo, box, kit_csv_text(csv, row, column[1]));
}

/* Optional: without boxes.csv there are labels and no boxes. */
static bool read_box_list(builder *b)
{
    static const char *const wanted[6] = { "image", "what", "x0", "y0", "x1", "y1" };
    char    path[PATH_ROOM];
    kit_csv csv;
    int     column[6];
    if (!kit_join(path, sizeof path, b->photos->folder, "boxes.csv", b->error)) return false;
    if (!kit_is_file(path)) return true;
    if (!kit_csv_read(&csv, path, ',', true, b->error)) return false;
    bool fine = true;
    for (int i = 0; i < 6 && fine; i++) {
        column[i] = kit_csv_column(&csv, wanted[i], b->error);
        fine = column[i] >= 0;
    }
    int count = b->photos->count;
    name_entry *list = (name_entry *)malloc(((size_t)count + 1) * sizeof *list);
    fine = fine && (list != NULL || no_memory(b->error));
    if (fine) {
        for (int i = 0; i < count; i++) {
            list[i].name = b->photos->photo[i].name;
            list[i].photo = i;
        }
        qsort(list, (size_t)count, sizeof *list, by_name);
    }
    for (int row = 1; row < csv.rows && fine; row++) fine = add_box_row(b, &csv, row, column, list);
    free(list);
    kit_csv_free(&csv);
    return fine;
}

/* ----------------------------------------------------------------------------------- opening -- */

static bool has_name(const kit_names *names, const char *name)
{
    for (int i = 0; i < names->count; i++) if (strcmp(names->name[i], name) == 0) return true;
    return false;
}

/* What the folder holds decides how it is read. */
static bool read_layout(builder *b, const kit_photos_options *o)
{
    char      metadata[PATH_ROOM];
    kit_names folders;
    const char *folder = b->photos->folder;
    if (!kit_join(metadata, sizeof metadata, folder, "metadata.csv", b->error)) return false;
    if (kit_is_file(metadata)) return read_birds(b, metadata, o->place_task);
    if (!kit_list_folder(folder, true, &folders, b->error)) return false;
    bool fine;
    if (has_name(&folders, "train") && (has_name(&folders, "test") || has_name(&folders, "val"))) {
        fine = read_split_folders(b);
    } else if (folders.count > 0) {
        fine = read_class_folders(b, &folders, o);
    } else {
        fine = add_pictures(b, "", -1, KIT_TEST);
    }
    kit_names_free(&folders);
    return fine && read_box_list(b);
}

bool kit_photos_open(kit_photos *photos, const char *folder, const kit_photos_options *options,
                     xg_error *error)
{
    kit_photos_options o;
    char text[100];
    memset(&o, 0, sizeof o);
    if (options != NULL) o = *options;
    memset(photos, 0, sizeof *photos);
    if (o.size < 0 || o.size > 4096 || !(o.val >= 0 && o.test >= 0 && o.val + o.test <= 1)) {
        return kit_fail(error, XG_ERR_ARGUMENT, "photographs need a size of 1 to 4096, and "
                        "fractions val and test of together at most 1");
    }
    photos->size = o.size == 0 ? 128 : o.size;
    photos->keep_bytes = o.keep_bytes == 0 ? (size_t)1 << 30 : o.keep_bytes;
    photos->folder = kit_copy_text(folder);
    builder b = { photos, 0, NULL, 0, 0, error };
    bool fine = photos->folder != NULL || no_memory(error);
    fine = fine && read_layout(&b, &o);
    if (fine && photos->count == 0) {
        fine = kit_fail(error, XG_ERR_FORMAT, "%s holds no pictures: give a folder with one "
                        "folder a class, or with metadata.csv", kit_short_path(folder, text));
    }
    fine = fine && settle_boxes(&b);
    for (int i = 0; i < b.boxes; i++) free(b.box[i].name);
    free(b.box);
    if (!fine) kit_photos_free(photos);
    return fine;
}

void kit_photos_free(kit_photos *photos)
{
    for (int i = 0; i < photos->count; i++) {
        free(photos->photo[i].path);
        free(photos->photo[i].name);
        free(photos->photo[i].pixels);
    }
    for (int i = 0; i < photos->classes && photos->class_name != NULL; i++) {
        free(photos->class_name[i]);
    }
    for (int i = 0; i < photos->boxes; i++) free(photos->box_name[i]);
    free(photos->photo);
    free(photos->class_name);
    free(photos->box);
    free(photos->box_name);
    free(photos->folder);
    memset(photos, 0, sizeof *photos);
}
