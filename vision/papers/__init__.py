"""One file for each paper: how its images are made, and how a student is fitted on them. Two signatures and no more:

    X_images(teacher, spec, *, images, steps, seed=0, folder=None, **settings) -> Batch
    X(teacher, config, spec, images, *, steps, batch_size, seed=0, loop=None, folder=None, **settings) -> student

A maker of images gives `images` of them after `steps` steps of each batch, pixel_values float [images, C, S, S], with
labels where the method has them. A fit takes any such batch and answers a student, a quantized copy of `teacher`, after
`steps` steps of `batch_size` images, of each block where blocks are reconstructed. Where a generator learns beside the
student the fit brings its own images, and `images` is None. The teacher is not touched, but for being frozen; settings
are the paper's, with its values for ImageNet as defaults. `folder` is where pictures go, for those that draw some;
`spec` and `folder` may be of no use to a fit, and stand there all the same.
"""
