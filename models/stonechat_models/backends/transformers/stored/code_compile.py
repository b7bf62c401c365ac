"""Compiles the kernels of products with weights that stay as stored, before they are needed."""

from collections.abc import Iterable

from torch import nn

from stonechat_models.backends.quantization.codes.coded_linear import CodedLinear


def compile_products(modules: Iterable[nn.Module]) -> None:
    """Compile in parallel the kernels of all `CodedLinear` modules, for any number of rows."""
    layers = [module for module in modules if isinstance(module, CodedLinear)]
    if not layers:
        return
    from stonechat_models.backends.quantization.codes.code_products import KERNEL_ROWS
    from stonechat_models.backends.transformers.cuda.kernel_timing import compiled_side_by_side

    with compiled_side_by_side():
        for layer in layers:
            for num_rows in KERNEL_ROWS:
                layer.compile_product(num_rows)
