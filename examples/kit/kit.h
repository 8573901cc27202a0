/* kit.h - what the examples, the tests and the command-line tool share, and what somebody who drops
 * xguide.h into a program does not need: scenes drawn by rule, readers of picture folders, pictures
 * and heat-map sheets, a progress line, a run log, a thread pool, options on the command line.
 *
 * C99 and POSIX. Arrows run one way: xguide.h <- kit <- examples, tools. Nothing here is global
 * except the flag that Ctrl-C sets. Functions that can fail return bool: false means that nothing
 * was changed or left behind, and the xg_error (which may be NULL) says why and what to do.
 *
 *   K1  errors, files, clock       kit_base.c        K7  drawing and text     kit_draw.c
 *   K2  tables of text (CSV)       kit_csv.c         K8  heat-map sheet       kit_sheet.c
 *   K3  scenes drawn by rule       kit_scenes.c      K9  charts               kit_chart.c
 *                                  kit_decoy.c       K10 progress, Ctrl-C     kit_progress.c
 *   K4  photographs in folders     kit_readers.c     K11 run log, tables      kit_log.c
 *   K5  order, batches             kit_batch.c       K12 threads              kit_threads.c
 *   K6  pictures                   kit_picture.c     K13 command line         kit_args.c
 */
#ifndef KIT_H
#define KIT_H

#include <stdio.h>

#include "xguide.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Lets the compiler check printf-like calls. */
#if defined(__GNUC__) || defined(__clang__)
#define KIT_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define KIT_PRINTF(text, first)
#endif

/* ============================================================================================== *
 *  [K1] errors, files, clock                                                                     *
 * ============================================================================================== */

/* Fills *error (unless it is NULL or holds an error already) and returns false, so that a function
 * can end with `return kit_fail(error, XG_ERR_IO, "cannot open %s", path);`. */
bool kit_fail(xg_error *error, xg_code code, const char *format, ...) KIT_PRINTF(3, 4);

/* The path as an error sentence shows it: whole, or "..." and its last 96 bytes. */
const char *kit_short_path(const char *path, char out[100]);

/* Writes "folder/name" (just name when folder is "" or name starts with '/'). False: too long. */
bool kit_join(char *out, size_t size, const char *folder, const char *name, xg_error *error);

bool kit_is_file(const char *path);                          /* a regular file that exists        */
bool kit_is_folder(const char *path);                        /* a folder that exists              */
bool kit_make_folder(const char *path, xg_error *error);     /* with its parents; may exist       */

/* Reads a whole file of at most `limit` bytes. *bytes gets a trailing 0 that *count does not count;
 * free() it. */
bool kit_read_file(const char *path, size_t limit, unsigned char **bytes, size_t *count,
                   xg_error *error);

/* Writes a file whole or not at all: to "path.tmp" first, then renamed. */
bool kit_write_file(const char *path, const void *bytes, size_t count, xg_error *error);

/* Names in a folder, in byte order, hidden ones skipped. */
typedef struct kit_names { char **name; int count; } kit_names;
bool kit_list_folder(const char *path, bool folders, kit_names *out, xg_error *error); /* folders:
                                            sub-folders only; otherwise regular files only        */
void kit_names_free(kit_names *names);

char  *kit_copy_text(const char *text);       /* a copy to free(); NULL when memory is short      */
double kit_seconds(void);                     /* a clock that never jumps                         */
int    kit_cpus(void);                        /* processors on line, at least 1                   */

/* Numbers for people. Each writes to `out` and returns it. */
const char *kit_human_time(double seconds, char out[32]);   /* "0.4 s", "3 min 20 s", ... */
const char *kit_human_count(double count, char out[32]);  /* "950", "11.2 k", "2.78 M", ... */
const char *kit_human_bytes(double bytes, char out[32]);     /* "512 B", "3.1 MiB"                */

/* ============================================================================================== *
 *  [K2] tables of text (CSV)                                                                     *
 * ============================================================================================== */

/* A text table in memory. Quotes ("a ""b"", c"), CRLF, a byte order mark, and blank lines are
 * understood. Every row has as many cells as the first, else reading fails with file and line. */
typedef struct kit_csv {
    char  *path;       /* for error sentences                                                     */
    char  *text;       /* the file, cut up in place; cells point into it                          */
    char **cell;       /* rows x columns                                                          */
    int   *line;       /* where each row starts in the file, from 1                               */
    int    rows, columns;
    bool   header;     /* row 0 names the columns                                                 */
} kit_csv;

/* separator: usually ','; ' ' takes any run of blanks as one. header: the first row names the
 * columns. */
bool kit_csv_read(kit_csv *csv, const char *path, char separator, bool header, xg_error *error);
void kit_csv_free(kit_csv *csv);

/* The column of that name, or -1 and an error that lists the columns there are. */
int         kit_csv_column(const kit_csv *csv, const char *name, xg_error *error);
const char *kit_csv_text(const kit_csv *csv, int row, int column);
bool        kit_csv_int(const kit_csv *csv, int row, int column, int low, int high, int *out,
                        xg_error *error);                  /* a whole number in [low,high]        */
bool        kit_csv_number(const kit_csv *csv, int row, int column, double *out, xg_error *error);

/* ============================================================================================== *
 *  [K3] scenes drawn by rule, with masks exact to the pixel                                      *
 * ============================================================================================== */

/* How pixel values 0..255 of red, green, blue become numbers for a network. */
typedef enum kit_norm {
    KIT_NORM_UNIT,         /* x/255, for scratch networks and B-cos                               */
    KIT_NORM_IMAGENET,     /* (x/255 - mean)/std, mean .485 .456 .406, std .229 .224 .225         */
    KIT_NORM_CAFFE,        /* blue green red, x - (104,117,123)                                   */
    KIT_NORM_SIGNED        /* x/127.5 - 1                                                         */
} kit_norm;

/* A labelled set of pictures in memory, ready to be copied into leaves. */
typedef struct kit_set {
    int      count, channels, h, w;
    int      classes;      /* labels are in [0,classes)                                           */
    int      groups;       /* groups are in [0,groups)                                            */
    xg_real *pixels;       /* [count,channels,h,w], 0 black .. 1 white (noise may exceed that)    */
    xg_real *masks;        /* [count,1,h,w], 1 on what should explain the label                   */
    int     *label;        /* [count]                                                             */
    int     *group;        /* [count], what it means is said by whoever made the set              */
    xg_box  *box;          /* [count], the tight box around the mask, x1 and y1 exclusive         */
    bool    *annotated;    /* [count], is the mask known to the training? All true at first       */
} kit_set;

bool kit_set_new(kit_set *set, int count, int channels, int h, int w, xg_error *error);
void kit_set_free(kit_set *set);

/* Turns pixels in [0,1] into what kit_picture_normalise would have made of them. Attributions that
 * multiply by the input want a middle grey of zero, KIT_NORM_SIGNED: with KIT_NORM_UNIT the ground
 * takes most of the map, and guidance has little to hold on to. Once a set. */
void kit_set_normalise(kit_set *set, kit_norm norm);

/* The tight box around mask > 0, upper edges exclusive; all zero for an empty mask. */
xg_box kit_mask_bounds(const xg_real *mask, int h, int w);

/* 3.1 The black-and-white sets of "Machine Learning from Explanations": greyscale, two classes.
 *     TRIANGLE         class 1 points up, class 0 down. Mask: a bar from the apex to the base.
 *     PENTAGON         the middle slice of such triangles, same labels and masks: for testing.
 *     FOX_CAT          a body with a pointed head (fox, 1) or a round one (cat, 0). Mask: a square
 *                      on the head's vertex or top.
 *     TRIANGLE_CIRCLE  the same heads without the bodies: for testing.
 *     From one generator state PENTAGON matches TRIANGLE and TRIANGLE_CIRCLE matches FOX_CAT, shape
 *     by shape. What the paper leaves open is an option here; zero means the default. */
typedef enum kit_shapes {
    KIT_TRIANGLE, KIT_PENTAGON, KIT_FOX_CAT, KIT_TRIANGLE_CIRCLE
} kit_shapes;

typedef enum kit_spurious {
    KIT_SPURIOUS_NONE,
    KIT_SPURIOUS_TEXT,      /* as the paper's text says. Triangles: at a random row of the left edge
                               (class 1) or of the right edge (class 0)                           */
    KIT_SPURIOUS_CAPTION    /* as its Figure 8 says. Triangles: bottom left (class 1), top left (0).
                               Fox and cat, both: top left (fox), top right (cat)                 */
} kit_spurious;

typedef struct kit_shape_options {
    kit_shapes kind;
    int    size;                     /* height and width of the picture; default 64               */
    double background, foreground;   /* grey levels; defaults 0 and 1                             */
    bool   invert;                   /* 1 - grey: black on white                                  */
    int    half_min, half_max;       /* half-width of a triangle; default 8..20                   */
    int    height_min, height_max;   /* height of a triangle; default 8..20                       */
    double slice;                    /* width of a pentagon by that of its triangle; default 0.5  */
    int    head_min, head_max;       /* width and height of a head; default 12..20                */
    int    body_min, body_max;       /* width and height of a body, drawn apart; default 16..24   */
    int    head_shift;               /* the head is off the body's middle by up to this; def. 0 */
    int    margin;                   /* pixels between a shape and the picture's edge; default 2  */
    int    outline;                  /* 0: filled; else the thickness of the line                 */
    double rotation;                 /* turned by up to this many degrees either way; default 0   */
    double noise;                    /* standard deviation of Gaussian noise; default 0           */
    double positive;                 /* fraction of class 1; default 0.5; 0.1 for 1:9             */
    int    bar;                      /* width of a triangle's mask; default 6                     */
    int    patch;                    /* side of a head's mask; default 8                          */
    kit_spurious spurious;           /* a square that tells the label too; default none           */
    int    square;                   /* its side; default 4                                       */
    double square_level;             /* its grey level; default 0.5                               */
} kit_shape_options;

/* Draws `count` pictures. Exactly round(positive * count) are of class 1, in random order. group is
 * the label. Fails (ARGUMENT) when shapes cannot fit into the picture. */
bool kit_draw_shapes(kit_set *set, int count, const kit_shape_options *options, xg_rng *rng,
                     xg_error *error);

/* 3.2 The decoy set: colour scenes with an object whose shape is the label, on a textured and noisy
 *     ground, and a decoy, a coloured disc, whose colour tells the label in training and misleads
 *     in the shifted test. Both colours and places of objects carry no information.
 *     Shapes, in label order: disc, square, triangle, cross, ring, diamond. */
typedef enum kit_decoy_rule {
    KIT_DECOY_TELLS,        /* the decoy's colour is the label's (except for the `broken` part)   */
    KIT_DECOY_RANDOM,       /* any colour, independent of the label                               */
    KIT_DECOY_LIES,         /* any colour but the label's                                         */
    KIT_DECOY_NONE          /* no decoy                                                           */
} kit_decoy_rule;

typedef struct kit_decoy_options {
    int    size;                     /* height and width; default 32                              */
    int    classes;                  /* 2..6; default 4                                           */
    kit_decoy_rule rule;
    double broken;                   /* fraction of KIT_DECOY_TELLS drawn at random; default 0    */
    double object_min, object_max;   /* radius of the object, by picture; default 0.20..0.26      */
    double decoy_radius;             /* radius of the decoy, by picture; default 0.09             */
    double contrast;                 /* of the object against the ground; default 0.45            */
    double texture;                  /* amplitude of the ground's waves; default 0.08             */
    double noise;                    /* standard deviation of Gaussian noise; default 0.05        */
    double rotation;                 /* objects turn by up to this many degrees; default 10       */
} kit_decoy_options;

/* Draws `count` pictures [3,size,size], classes as equal in number as can be, in random order.
 * group = label * classes + colour of the decoy (with KIT_DECOY_NONE: label * classes + label). */
bool kit_draw_decoy(kit_set *set, int count, const kit_decoy_options *options, xg_rng *rng,
                    xg_error *error);
const char *kit_decoy_class(int label);        /* "disc", "square", ...                           */

/* Marks int(fraction * count) entries true, the others false, drawn by seed without replacement
 * (Rao 2023). */
void kit_annotate(bool *annotated, int count, double fraction, uint64_t seed);

/* ============================================================================================== *
 *  [K4] photographs in folders                                                                   *
 * ============================================================================================== */

typedef enum kit_split { KIT_TRAIN, KIT_VAL, KIT_TEST } kit_split;

/* One photograph: where it is and what is known of it. */
typedef struct kit_photo {
    char     *path;        /* of its file                                                         */
    char     *name;        /* as the list or the folder calls it                                  */
    int       label;       /* class, or -1 when not known                                         */
    int       place;       /* Waterbirds: 0 land, 1 water; otherwise -1                           */
    int       group;       /* Waterbirds: 2*y + place; otherwise the label (0 if not known)       */
    kit_split split;
    int       first_box, boxes;   /* its boxes are photos->box[first_box .. first_box+boxes-1]    */
    bool      annotated;   /* may training see its boxes? Starts as boxes > 0                     */
    int       w, h;        /* of the file's picture; 0 until it was decoded once                  */
    unsigned char *pixels; /* [size][size][3] once decoded and kept; else NULL                    */
} kit_photo;

typedef struct kit_photos {
    char      *folder;
    int        count, classes, groups;
    kit_photo *photo;
    char     **class_name; /* [classes]                                                           */
    xg_box    *box;        /* in pixels of the file's picture, edges x0 y0 x1 y1                  */
    char     **box_name;   /* what each box is round, may be ""                                   */
    int        boxes;
    int        size;       /* every photograph is squashed to size x size                         */
    size_t     keep_bytes, kept_bytes;   /* limit and use of memory for decoded pictures          */
} kit_photos;

typedef struct kit_photos_options {
    int      size;         /* default 128                                                         */
    double   val, test;    /* class folders without splits: fractions of each class; default 0  */
    uint64_t seed;         /* which files go to which split                                       */
    size_t   keep_bytes;   /* keep decoded pictures up to this; default 1 GiB                     */
    bool     place_task;   /* Waterbirds: the label is the place; view.outside then fits        */
} kit_photos_options;

/* Opens a folder of photographs. It may be laid out as
 *     Waterbirds       metadata.csv (img_filename,y,place,split) and bounding_boxes.txt
 *     split folders    train/CLASS/..., test/CLASS/..., optionally val/CLASS/...
 *     class folders    CLASS/..., cut into splits by `val` and `test`
 *     flat             pictures only; labels are not known, all in KIT_TEST
 * The last three take boxes from boxes.csv (image,what,x0,y0,x1,y1; image relative to the folder)
 * when it is there. Pictures (.png .jpg .jpeg) are not decoded yet. */
bool kit_photos_open(kit_photos *photos, const char *folder, const kit_photos_options *options,
                     xg_error *error);
void kit_photos_free(kit_photos *photos);

/* Indices of one split, in order; returns how many. out may be NULL to ask for the number. */
int  kit_photos_split(const kit_photos *photos, kit_split split, int *out);

/* Lets training see the boxes of int(fraction * N) photographs of the training split, drawn by seed
 * without replacement; photographs without boxes stay without. */
bool kit_photos_annotate(kit_photos *photos, double fraction, uint64_t seed, xg_error *error);

/* ============================================================================================== *
 *  [K5] order, batches                                                                           *
 * ============================================================================================== */

/* Which samples come next. The order of an epoch is a function of the generator's state at its
 * start, so (state, epoch, position) is all that has to be saved to go on exactly. */
typedef struct kit_order {
    int    *item;      /* what is dealt out, in ascending order                                   */
    int    *turn;      /* the order of this epoch                                                 */
    int     count;
    bool    shuffle;
    int     epoch;     /* epochs begun before this one                                            */
    int     at;        /* dealt out in this epoch                                                 */
    xg_rng  start;     /* the generator as it was before this epoch's shuffle                     */
    xg_rng  rng;       /* and as it is now                                                        */
} kit_order;

bool kit_order_new(kit_order *order, const int *items, int count, bool shuffle, xg_rng rng,
                   xg_error *error);                        /* items NULL: 0..count-1             */
void kit_order_free(kit_order *order);
/* Up to `batch` items; fewer at the end of an epoch; 0 once between epochs, and the next begins. */
int  kit_order_next(kit_order *order, int batch, int *out);
/* The state as a short text, and back. */
void kit_order_save(const kit_order *order, char out[96]);
bool kit_order_restore(kit_order *order, const char *text, xg_error *error);

/* The rule of that name: "unit", "imagenet", "caffe", "signed". */
bool kit_norm_find(const char *name, kit_norm *out, xg_error *error);

/* Buffers for one batch, ready for xg_leaf and xg_guide. */
typedef struct kit_batch {
    int      capacity, count, channels, h, w;
    xg_real *pixels;       /* [count,channels,h,w]                                                */
    xg_real *masks;        /* [count,1,h,w]                                                       */
    xg_real *weight;       /* [count]: 1 where the mask may be used for training, else 0          */
    int     *label, *group, *index;                         /* [count]                            */
} kit_batch;
bool kit_batch_new(kit_batch *batch, int capacity, int channels, int h, int w, xg_error *error);
void kit_batch_free(kit_batch *batch);

/* Copies samples index[0..count-1] of a set. Shapes must fit, else an ARGUMENT error. */
bool kit_batch_from_set(kit_batch *batch, const kit_set *set, const int *index, int count,
                        xg_error *error);

/* How photographs become a batch. */
typedef struct kit_view {
    kit_norm norm;
    double   dilation;     /* of boxes (Rao 2023); default 0                                       */
    bool     outside;      /* the mask is 1 outside the boxes (for the place task)                */
    bool     all_boxes;    /* weight 1 wherever there is a box, annotated or not: for evaluation  */
    bool     flip;         /* mirror left-right by a fair coin, with its boxes; needs rng         */
    double   crop;         /* cut out a random part of at least this area; 0: whole; needs rng    */
} kit_view;

struct kit_pool;

/* Decodes (in parallel when there is a pool), normalises, and draws the masks of the boxes. */
bool kit_batch_from_photos(kit_batch *batch, kit_photos *photos, const int *index, int count,
                           const kit_view *view, xg_rng *rng, struct kit_pool *pool,
                           xg_error *error);

/* ============================================================================================== *
 *  [K6] pictures                                                                                 *
 * ============================================================================================== */

/* Eight-bit red, green, blue; rows from the top; free() by kit_picture_free. */
typedef struct kit_picture { int w, h; unsigned char *rgb; } kit_picture;

bool kit_picture_new(kit_picture *picture, int w, int h, unsigned colour, xg_error *error);
void kit_picture_free(kit_picture *picture);

/* PNG and JPEG (by content), at most 64 megapixels; transparency is laid on white, grey becomes
 * colour. Hostile files are refused with a sentence. */
bool kit_picture_load(kit_picture *picture, const char *path, xg_error *error);
bool kit_picture_save(const kit_picture *picture, const char *path, xg_error *error);    /* a PNG */

/* A copy squashed to w x h (no cropping), filtered with a triangle: bilinear when it grows,
 * antialiased when it shrinks. */
bool kit_picture_resize(const kit_picture *in, int w, int h, kit_picture *out, xg_error *error);

/* To and from the numbers of a network: planes [3,h,w]. Back, values are clamped; channels 1 means
 * grey, 3 colour, 6 the first three of xg_bcos_input. */
void kit_picture_normalise(const unsigned char *rgb, int w, int h, kit_norm norm, xg_real *planes);
bool kit_picture_from(kit_picture *picture, const xg_real *planes, int channels, int h, int w,
                      kit_norm norm, xg_error *error);

/* ============================================================================================== *
 *  [K7] drawing and text                                                                         *
 * ============================================================================================== */

/* Colours are 0xRRGGBB. Everything is clipped to the picture. Coordinates of shapes are edges: the
 * first pixel covers [0,1]. Lines, discs and text have soft edges. */
#define KIT_WHITE  0xffffffu
#define KIT_BLACK  0x000000u
#define KIT_INK    0x222222u      /* text and axes                                                */
#define KIT_SOFT   0x777777u      /* lesser text                                                  */
#define KIT_FAINT  0xddddddu      /* grid lines                                                   */
unsigned kit_colour(int i);       /* eight well-told-apart colours, then again                    */

void kit_draw_pixel(kit_picture *p, int x, int y, unsigned colour, double opacity);
void kit_draw_rect(kit_picture *p, int x0, int y0, int x1, int y1, unsigned colour, double opacity);
void kit_draw_frame(kit_picture *p, double x0, double y0, double x1, double y1, double thick,
                    unsigned colour);
void kit_draw_line(kit_picture *p, double x0, double y0, double x1, double y1, double thick,
                   unsigned colour);
void kit_draw_disc(kit_picture *p, double x, double y, double radius, unsigned colour);
void kit_draw_picture(kit_picture *p, const kit_picture *stamp, int x, int y);

/* Text in the built-in 5x7 letters, drawn as rounded strokes, `size` pixels high (capitals). Bytes
 * outside ASCII show as a box. y is the top of the capitals. */
typedef enum kit_align { KIT_LEFT, KIT_CENTRE, KIT_RIGHT } kit_align;
void   kit_draw_text(kit_picture *p, double x, double y, double size, kit_align align,
                     unsigned colour, const char *text);
double kit_text_width(const char *text, double size);
/* The same, cut with ".." where it would be wider than `width`. */
void   kit_draw_text_in(kit_picture *p, double x, double y, double size, kit_align align,
                        unsigned colour, const char *text, double width);

/* ============================================================================================== *
 *  [K8] heat-map sheet                                                                           *
 * ============================================================================================== */

/* One map to be laid over a row's picture. */
typedef struct kit_map {
    const xg_real *value;  /* [h,w], signed; NULL leaves the cell empty                           */
    int            h, w;
    const char    *caption;   /* under the cell, may be NULL                                      */
} kit_map;

typedef struct kit_sheet_row {
    const char        *title;      /* left of the row, may be NULL; '\n' starts a new line        */
    const kit_picture *picture;
    const char        *caption;    /* under the picture                                           */
    const xg_box      *box;        /* in pixels of the picture                                    */
    int                boxes;
    const kit_map     *map;        /* [columns]                                                   */
} kit_sheet_row;

typedef struct kit_sheet {
    const char          *title;    /* over the page                                               */
    const char          *note;     /* one lesser line under it, may be NULL                       */
    const char *const   *column;   /* [columns] titles of the maps                                */
    int                  columns;
    const kit_sheet_row *row;
    int                  rows;
    int                  cell;     /* longer side of a cell; default 200, at least 160            */
    double               strength; /* opacity of a map where it is largest; default 0.85          */
} kit_sheet;

/* Each map is scaled by its own largest magnitude (the largest in 200 left out): red speaks for the
 * class, blue against, grey neither. Boxes are outlined in every cell. A colour bar explains. */
bool kit_sheet_draw(const kit_sheet *sheet, kit_picture *out, xg_error *error);
bool kit_sheet_save(const kit_sheet *sheet, const char *path, xg_error *error);

/* The diverging colour of t in [-1,1]: blue, white, red. */
unsigned kit_diverging(double t);

/* ============================================================================================== *
 *  [K9] charts                                                                                   *
 * ============================================================================================== */

/* A line of points; NaN breaks it. Lines of one colour in several panels belong to one run. */
typedef struct kit_line {
    const char   *name;        /* for the legend; NULL: not in it                                 */
    const double *x, *y;       /* x NULL: 0, 1, 2, ...                                            */
    const double *spread;      /* half-height of a shaded band, or NULL                           */
    int           count;
    int           colour;      /* for kit_colour                                                  */
    bool          dashed;
} kit_line;

typedef struct kit_panel {
    const char     *title, *x_label, *y_label;
    double          y_min, y_max;       /* both 0: from the data                                  */
    bool            percent;            /* y is a fraction: write 0.25 as 25 %                    */
    /* either lines ... */
    const kit_line *line;
    int             lines;
    /* ... or bars: one group for each label, one bar in it for each series */
    const char *const *label;           /* [groups]                                               */
    const char *const *series;          /* [bars]                                                 */
    const double   *bar;                /* [groups][bars]                                         */
    const double   *bar_spread;         /* the same, or NULL                                      */
    int             groups, bars;
} kit_panel;

/* Panels side by side under a title; width of each 420 and height 300 when 0. */
bool kit_chart_draw(const char *title, const kit_panel *panel, int panels, int width, int height,
                    kit_picture *out, xg_error *error);
bool kit_chart_save(const char *title, const kit_panel *panel, int panels, const char *path,
                    xg_error *error);

/* ============================================================================================== *
 *  [K10] progress, Ctrl-C                                                                        *
 * ============================================================================================== */

/* One line on stderr that is written over on a terminal, or a plain line every few seconds when
 * stderr is a file. */
typedef struct kit_progress {
    FILE   *out;
    char    label[48];
    int64_t first, total;      /* steps done before this run, and of the whole                    */
    double  started, shown;    /* by kit_seconds                                                  */
    double  every;             /* seconds between lines when not on a terminal; 5                 */
    bool    live;              /* writes over its line                                            */
    int     width;             /* of the line that stands there now                               */
} kit_progress;

/* out NULL: stderr. `first` of `total` steps are done already (after a resume). */
void kit_progress_start(kit_progress *p, FILE *out, const char *label, int64_t first,
                        int64_t total);
/* Says that `done` of total steps are done; `note` (printf-like, may be NULL) ends the line. Cheap
 * to call for every step: it writes ten times a second at most. */
void kit_progress_step(kit_progress *p, int64_t done, const char *note, ...) KIT_PRINTF(3, 4);
/* Writes the last state with the time taken, and a line end. */
void kit_progress_end(kit_progress *p, int64_t done, const char *note, ...) KIT_PRINTF(3, 4);

/* After kit_catch_interrupt, Ctrl-C (and SIGTERM) only sets a flag; the second one quits. */
void kit_catch_interrupt(void);
bool kit_interrupted(void);

/* ============================================================================================== *
 *  [K11] run log, tables                                                                         *
 * ============================================================================================== */

/* A log of rows: FOLDER/NAME.csv and FOLDER/NAME.jsonl. Lines are written whole and at once. */
typedef struct kit_log {
    FILE        *csv, *json;
    int          columns;
    char       **column;       /* names                                                           */
    char       **value;        /* what the next row holds, NULL: nothing                          */
    bool        *quoted;       /* is it text?                                                     */
    bool         failed;       /* the next row holds a value for no column                        */
} kit_log;

/* Starts a log, or goes on with one. resume_at < 0 starts afresh. Otherwise old rows stay if the
 * number in their first column is less than or equal to resume_at, and a half line is dropped; the
 * old columns must be the same. */
bool kit_log_open(kit_log *log, const char *folder, const char *name, const char *const *columns,
                  int count, double resume_at, xg_error *error);
/* Sets a value of the next row. NaN becomes an empty cell and a JSON null. A column that does not
 * exist makes kit_log_row fail. */
void kit_log_number(kit_log *log, const char *column, double value);
void kit_log_text(kit_log *log, const char *column, const char *value);
bool kit_log_row(kit_log *log, xg_error *error);           /* writes the row and empties it       */
bool kit_log_close(kit_log *log, xg_error *error);

/* An aligned table for people. The first row is the heading; columns of numbers align right. */
typedef struct kit_table {
    char **cell;
    int    cells, room, columns;   /* columns is the length of the first row                      */
    bool   failed;                 /* memory was short, or a row was of another length            */
    int    in_row;
} kit_table;
void kit_table_cell(kit_table *table, const char *format, ...) KIT_PRINTF(2, 3);
void kit_table_end_row(kit_table *table);
bool kit_table_print(const kit_table *table, FILE *out, bool markdown); /* false: nothing printed,
                                                                           the table failed       */
void kit_table_free(kit_table *table);

/* ============================================================================================== *
 *  [K12] threads                                                                                 *
 * ============================================================================================== */

/* A pool of persistent workers for xg_config.parallel_for. The calling thread works too, so a pool
 * of n makes n-1 threads. Tasks are split evenly; whoever is done first helps the others. Idle
 * workers spin for some 50 microseconds, then sleep. A call from
 * inside a task, or while another thread uses the pool, runs on the calling thread alone: nothing
 * can lock up, and no thread beyond the pool's is ever made. */
typedef struct kit_pool kit_pool;
kit_pool *kit_pool_new(int threads, xg_error *error);      /* 0: one for each processor           */
void      kit_pool_free(kit_pool *pool);                   /* NULL is fine                        */
int       kit_pool_threads(const kit_pool *pool);          /* NULL: 1                             */
void      kit_pool_run(kit_pool *pool, int tasks,          /* NULL: serial                        */
                       void (*run)(void *context, int task, int worker), void *context);
void      kit_pool_config(kit_pool *pool, xg_config *config); /* sets parallel_for and so on */

/* Sets alloc and release: malloc, in large pages where the system gives them. The first steps of a
 * large network then take seconds less. */
void      kit_memory_config(xg_config *config);

/* ============================================================================================== *
 *  [K13] command line                                                                            *
 * ============================================================================================== */

/* One option. `value` points at what it sets; what is there before is the default, and shown. */
typedef enum kit_arg_kind {
    KIT_ARG_FLAG,      /* bool: --name                                                            */
    KIT_ARG_INT,       /* int                                                                     */
    KIT_ARG_NUMBER,    /* double                                                                  */
    KIT_ARG_TEXT,      /* const char *, into argv                                                 */
    KIT_ARG_CHOICE,    /* int, the position of the word in `argument`: "plain|energy|l1"          */
    KIT_ARG_SEED,      /* uint64_t                                                                */
    KIT_ARG_HEADING    /* no option: help becomes a heading                                       */
} kit_arg_kind;

typedef struct kit_arg {
    const char  *name;         /* long name, "epochs"                                             */
    char         letter;       /* short name or 0                                                 */
    kit_arg_kind kind;
    void        *value;
    const char  *argument;     /* what follows, as the help calls it: "FOLDER"; or the choices    */
    const char  *help;         /* one line                                                        */
} kit_arg;

typedef enum kit_args_result {
    KIT_ARGS_OK,               /* go on                                                           */
    KIT_ARGS_HELP,             /* --help was asked for and printed: exit with 0                   */
    KIT_ARGS_BAD               /* the error says what is wrong: print it, exit with 2             */
} kit_args_result;

/* Reads argv[1..] by the table. Words that are no options go to words[0..max-1] and *count; more
 * than max are an error. usage starts the help, examples (may be NULL) end it. */
kit_args_result kit_args_read(int argc, char **argv, const kit_arg *args, int count,
                              const char *usage, const char *examples, const char **words, int max,
                              int *words_count, xg_error *error);

#ifdef __cplusplus
}
#endif
#endif /* KIT_H */
