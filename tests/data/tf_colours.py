"""Run as a program: what TensorFlow makes of a picture.

    python tf_colours.py IN.npz OUT.npz

IN holds `image` (H, W, 3) uint8, `box` (y1, x1, y2, x2) as shares, and rows of `jitters`:
brightness, contrast, saturation, hue. OUT holds the picture squashed to 224 (`square`), its crop
(`crop`, float), and after each of the jitters (`jittered`).
"""

import sys

import numpy as np
import tensorflow as tf

given = np.load(sys.argv[1])
size = (224, 224)
resized = tf.image.resize(given["image"], size, method="lanczos3", antialias=True)
square = tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
unit = tf.image.convert_image_dtype(square, tf.float32)
box = tf.constant(given["box"][None], tf.float32)
cropped = tf.image.crop_and_resize(unit[None], box, [0], size)[0]
cropped = tf.clip_by_value(cropped, 0, 1)
jittered = []
for brightness, contrast, saturation, hue in given["jitters"].astype(np.float32):
    out = tf.clip_by_value(tf.image.adjust_brightness(cropped, brightness), 0, 1)
    out = tf.clip_by_value(tf.image.adjust_contrast(out, contrast), 0, 1)
    out = tf.clip_by_value(tf.image.adjust_saturation(out, saturation), 0, 1)
    out = tf.clip_by_value(tf.image.adjust_hue(out, hue), 0, 1)
    jittered.append(tf.image.convert_image_dtype(out, tf.uint8, saturate=True).numpy())
np.savez(sys.argv[2], square=square.numpy(), crop=cropped.numpy(), jittered=np.stack(jittered))
