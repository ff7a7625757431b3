"""Layers that read and write HDF5 files."""

from __future__ import annotations

from typing import Any

from protocaffe.blob import Blob
from protocaffe.data.hdf5 import HDF5Rows, prepare_file, write_rows
from protocaffe.errors import DataError, FileError
from protocaffe.layers.base import Layer, register


@register("HDF5Data")
class HDF5Data(Layer):
    """Rows of the data sets that the tops name, from the HDF5 files of a list.

    Data sets of floats or integers are read as they are; there is no ``transform_param``. A batch
    may span files, and after the last row comes the first. ``shuffle`` goes through files, and
    rows within a file, in a new order in every round. Names in the list are relative to the
    working directory.

    Bottoms: none. Tops: one per data set, (batch, ...).
    Reference: Caffe's HDF5DataLayer.

    Example:
        layer { name: "data" type: "HDF5Data" top: "data" top: "label"
            hdf5_data_param { source: "train_list.txt" batch_size: 2 shuffle: true } }

    Attributes:
        position: how many rows ``forward`` has given out so far.
    """

    on_host = True
    bottoms = (0, 0)
    tops = (1, None)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.position = 0
        options = self.param.hdf5_data_param
        self.batch_size = options.batch_size
        if self.param.HasField("transform_param"):
            raise self.error("takes no transform_param; transform the data before they are stored")
        if self.batch_size < 1:
            raise self.error("hdf5_data_param needs a batch_size of at least 1")
        if not options.source:
            raise self.error("hdf5_data_param needs a source: a list of HDF5 files")
        seed = int(self.rng.integers(2**63))
        try:
            self._rows = HDF5Rows(
                options.source, self.param.top, shuffle=options.shuffle, seed=seed
            )
        except (DataError, FileError) as error:
            raise self.error(str(error)) from None

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        for blob, shape in zip(top, self._rows.row_shapes, strict=True):
            blob.reshape(self.batch_size, *shape)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        try:
            self._rows.read(self.position, [blob.data for blob in top])
        except (DataError, FileError) as error:
            raise self.error(str(error)) from None
        self.position += self.batch_size

    def seek(self, position: int) -> None:
        """Go on as if ``position`` rows had been given out since the set-up."""
        self.position = position

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "position": self.position, "seed": self._rows.seed}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._rows.seed = state["seed"]
        self.seek(state["position"])


@register("HDF5Output")
class HDF5Output(Layer):
    """Writes its bottoms to ``file_name`` as the data sets ``data`` and ``label``.

    The file takes one forward pass. It is made, empty, at set-up; one that is there already stays
    until the pass has written another in its place. Data sets have four axes, (num,
    channels, height, width); axes that a bottom lacks are 1.

    Bottoms: any two blobs of up to four axes and equal num. Tops: none.
    Reference: Caffe's HDF5OutputLayer.

    Example:
        layer { name: "save" type: "HDF5Output" bottom: "features" bottom: "label"
            hdf5_output_param { file_name: "features.h5" } }
    """

    on_host = True
    bottoms = (2, 2)
    tops = (0, 0)

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        self.path = self.param.hdf5_output_param.file_name
        if not self.path:
            raise self.error("hdf5_output_param needs a file_name")
        self._is_written = False
        if self.dry:
            return
        try:
            prepare_file(self.path)
        except FileError as error:
            raise self.error(str(error)) from None

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        for blob in bottom:
            if blob.num_axes > 4:
                raise self.error(f"takes bottoms of up to 4 axes, got shape {blob.shape}")
        if bottom[0].num != bottom[1].num:
            raise self.error(
                f"its bottoms must have the same num, got shapes {bottom[0].shape} and "
                f"{bottom[1].shape}"
            )

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        if self._is_written:
            raise self.error(
                f"{self.path}: holds the batch of one forward pass already, and takes no more"
            )
        arrays = {
            name: blob.data.reshape(blob.num, blob.channels, blob.height, blob.width)
            for name, blob in zip(("data", "label"), bottom, strict=True)
        }
        try:
            write_rows(self.path, arrays)
        except FileError as error:
            raise self.error(str(error)) from None
        self._is_written = True

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        return
