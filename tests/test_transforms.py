"""torch.func of the public functions and of the layers, against loops and against the definition."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import involution
from involution import reference
from involution.models import RedNet

X = torch.randn(3, 2, 4, 5, 4, dtype=torch.float64)  # 3 of (2, 4, 5, 4)
W = torch.randn(3, 2, 2, 3, 3, 5, 4, dtype=torch.float64)


def operation(x: Tensor, w: Tensor) -> Tensor:
    return involution.involution2d(x, w, padding="same")


def definition(x: Tensor, w: Tensor) -> Tensor:
    return reference.involution(x, w, (1, 1), (1, 1), (1, 1))


def each(function, *stacks: Tensor, **options) -> Tensor:
    """vmap, as a loop over the first axes."""
    return torch.stack([function(*tensors) for tensors in zip(*stacks, strict=True)])


@pytest.mark.parametrize("mapped", ["input", "weight", "both"])
@pytest.mark.parametrize("in_dim", [0, 2, -1])
@pytest.mark.parametrize("out_dim", [0, 1, -1])
def test_vmap_over_input_weight_or_both(mapped: str, in_dim: int, out_dim: int) -> None:
    x, w = (X if mapped != "weight" else X[0]), (W if mapped != "input" else W[0])
    in_dims = tuple(in_dim if tensor.dim() in (5, 7) else None for tensor in (x, w))
    moved = [t if dim is None else t.movedim(0, dim) for t, dim in zip((x, w), in_dims, strict=True)]
    expected = torch.stack(
        [definition(x if x.dim() == 4 else x[i], w if w.dim() == 6 else w[i]) for i in range(3)], out_dim
    )
    result = vmap(operation, in_dims, out_dim)(*moved)
    torch.testing.assert_close(result, expected)


def test_vmap_within_vmap() -> None:
    result = vmap(vmap(operation, (0, None)), (None, 0))(X, W)
    torch.testing.assert_close(result, torch.stack([each(lambda x, w=w: definition(x, w), X) for w in W]))


def test_vmap_in_chunks() -> None:
    torch.testing.assert_close(vmap(operation, chunk_size=2)(X, W), each(definition, X, W))


def test_vjp_and_jvp() -> None:
    x, w = X[0], W[0]
    output, pull = vjp(operation, x, w)
    cotangent = torch.randn_like(output)
    expected = vjp(definition, x, w)[1](cotangent)
    torch.testing.assert_close(pull(cotangent), expected)

    tangents = torch.randn_like(x), torch.randn_like(w)
    result = jvp(operation, (x, w), tangents)
    torch.testing.assert_close(result, jvp(definition, (x, w), tangents))
    # One is the other's transpose.
    forward = (cotangent * result[1]).sum()
    backward = sum((a * b).sum() for a, b in zip(pull(cotangent), tangents, strict=True))
    torch.testing.assert_close(forward, backward)


@pytest.mark.parametrize("argnum", [0, 1])
def test_jacobians(argnum: int) -> None:
    x, w = X[0, :1, :2, :3, :3], W[0, :1, :1, :, :, :3, :3]
    expected = torch.autograd.functional.jacobian(
        lambda t: definition(*((t, w) if argnum == 0 else (x, t))), (x, w)[argnum]
    )
    for jacobian in (jacrev, jacfwd):
        torch.testing.assert_close(jacobian(operation, argnum)(x, w), expected)
    in_chunks = jacrev(operation, argnum, chunk_size=5)(x, w)
    torch.testing.assert_close(in_chunks, expected)


def test_hessian() -> None:
    x, w = X[0, :1, :2, :3, :3], W[0, :1, :1, :, :, :3, :3]

    def energy(function, x: Tensor, w: Tensor) -> Tensor:
        return function(x, w).tanh().square().sum()

    expected = torch.autograd.functional.hessian(lambda x, w: energy(definition, x, w), (x, w))
    result = hessian(lambda x, w: energy(operation, x, w), argnums=(0, 1))(x, w)
    torch.testing.assert_close(result, expected)


def test_forward_over_backward() -> None:
    """A tangent goes through a recorded graph: a Hessian-vector product, as forward_ad gives it."""
    x, w = X[0].clone().requires_grad_(), W[0].clone().requires_grad_()
    direction = torch.randn_like(x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, direction)
        output = operation(dual, w).square().sum()
        gradients = torch.autograd.grad(output, (x, w), create_graph=True)
        products = [forward_ad.unpack_dual(gradient).tangent for gradient in gradients]

    def definitions(x: Tensor) -> tuple[Tensor, ...]:
        return grad(lambda x, w: definition(x, w).square().sum(), (0, 1))(x, w.detach())

    expected = jvp(definitions, (x.detach(),), (direction,))[1]
    torch.testing.assert_close(products, list(expected))


# ---- layers ----


def rednet() -> nn.Module:
    return RedNet(
        (1,), widths=(16,), strides=(2,), stem="small", stem_channels=16, kernel_size=3, num_classes=2
    )


LAYERS = {
    "Involution2d": lambda: involution.Involution2d(4, 3, 2, groups=2, reduction_ratio=2),
    "InvolutionLayer": lambda: involution.InvolutionLayer(4, 4, 3, groups=2),
    "RedNet": rednet,
}


@pytest.mark.parametrize("name", LAYERS)
def test_per_sample_gradients(name: str) -> None:
    """vmap(grad) of a model in evaluation mode gives what a loop of backward() over the samples gives."""
    torch.manual_seed(0)
    model = LAYERS[name]().double().eval()
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    samples = torch.randn(3, 3 if name == "RedNet" else 4, 6, 5, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, (parameters, buffers), (sample[None],)).square().sum()

    detached = {name: parameter.detach() for name, parameter in parameters.items()}
    result = vmap(grad(loss), (None, 0))(detached, samples)
    for index, sample in enumerate(samples):
        expected = torch.autograd.grad(model(sample[None]).square().sum(), tuple(parameters.values()))
        for (name, stack), gradient in zip(result.items(), expected, strict=True):
            torch.testing.assert_close(stack[index], gradient, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", LAYERS)
def test_tangents_of_a_model(name: str) -> None:
    """jvp is the limit of differences, computed here in float64."""
    torch.manual_seed(0)
    model = LAYERS[name]().double().eval()
    x = torch.randn(2, 3 if name == "RedNet" else 4, 6, 5, dtype=torch.float64)
    direction = torch.randn_like(x)
    step = 1e-6
    with torch.no_grad():
        expected = (model(x + step * direction) - model(x - step * direction)) / (2 * step)
        torch.testing.assert_close(jvp(model, (x,), (direction,))[1], expected, rtol=1e-5, atol=1e-6)


def test_ensembles_of_models() -> None:
    """vmap over stacked parameters runs several models at once."""
    models = [LAYERS["Involution2d"]().double().eval() for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    result = vmap(lambda p, b: functional_call(models[0], (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(result, torch.stack([model(x) for model in models]))
