"""Models made of other things: of functions, of arrays, and with a memory."""

import numpy as np
import torch

from whisperkit_tools.decoder.adapters import ArrayModelAdapter, FunctionModel, MemoizedModel
from whisperkit_tools.mil.tensor_spec import TensorSpec

INPUTS, OUTPUTS = {"x": TensorSpec("x", (2,), "float32")}, {"y": TensorSpec("y", (2,), "float32")}


def counting(runs):
    """A model that doubles, and notes each run."""

    def double(inputs):
        runs.append(1)
        return {"y": inputs["x"] * 2}

    return FunctionModel(double, INPUTS, OUTPUTS)


def test_a_model_is_not_run_twice_on_what_it_remembers():
    runs = []
    one, two = {"x": torch.ones(2)}, {"x": torch.zeros(2)}
    last = MemoizedModel(counting(runs), capacity=1)
    for inputs in (one, one, two, one):
        assert torch.equal(last.run(inputs)["y"], inputs["x"] * 2)
    assert len(runs) == 3
    every = MemoizedModel(counting(runs))
    for inputs in (one, two, one, two):
        assert torch.equal(every.run(inputs)["y"], inputs["x"] * 2)
    assert len(runs) == 5
    every.clear()
    every.run(one)
    assert len(runs) == 6


def test_results_are_remembered_by_shape_and_type_too():
    runs = []
    model = MemoizedModel(counting(runs))
    for x in (torch.zeros(4), torch.zeros(2, 2), torch.zeros(2, dtype=torch.float64), torch.zeros(4)):
        assert model.run({"x": x})["y"].shape == x.shape
    assert len(runs) == 3
    assert (model.inputs, model.outputs, model.states) == (INPUTS, OUTPUTS, {})


def test_arrays_go_in_and_out_of_an_array_model():
    class Doubling:
        inputs, outputs, states = INPUTS, OUTPUTS, {}

        def make_state(self):
            return "fresh"

        def predict(self, data, state=None):
            assert isinstance(data["x"], np.ndarray)
            return {"y": data["x"] * 2, "state": np.array(state == "fresh")}

    model = ArrayModelAdapter(Doubling())
    found = model.run({"x": torch.tensor([1.0, 2.0])}, state=model.make_state())
    assert found["y"].tolist() == [2.0, 4.0]
    assert bool(found["state"])
