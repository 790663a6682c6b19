"""The networks fit their samples, and are the published ones where the README says so."""

import pytest
import torch

from elite_pl.models import networks

SHAPES = [(64,), (1, 28, 28), (3, 32, 32), (1, 8, 8), (3, 30, 45), (3, 96, 64), (1, 4, 5), (2, 28, 28)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_encoder_and_decoder_fit_the_sample(shape):
    backbone = networks.auto(shape)
    sample = torch.rand(3, *shape)
    output = backbone.encoder(sample)
    assert output.shape == (3, backbone.outputs)
    assert backbone.decoder(output).shape == sample.shape


@pytest.mark.parametrize(
    "backbone, weights",
    [
        (networks.lenet((1, 28, 28)), 7_272),
        (networks.lenet((1, 28, 28), (16, 32), 64, hidden=128), 222_096),
        (networks.lenet((3, 32, 32)), 520_544),
        (networks.lenet((1, 32, 32), (32, 64, 128), 128), 518_944),
    ],
    ids=["mnist", "fmnist", "cifar10", "gray release"],
)
def test_encoders_have_as_many_weights_as_deep_sads(backbone, weights):
    assert sum(p.numel() for p in backbone.encoder.parameters()) == weights


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_no_parameter_could_move_the_output_without_the_input(shape):
    encoder = networks.auto(shape).encoder
    assert not any(name.endswith("bias") for name, _ in encoder.named_parameters())
    assert not any(isinstance(m, torch.nn.BatchNorm2d) and m.affine for m in encoder.modules())


@pytest.mark.parametrize("channels, bottleneck, code", [(1, None, 512), (3, None, 2048), (1, 20, 20)])
def test_the_strided_autoencoder_is_that_of_the_release(channels, bottleneck, code):
    backbone = networks.strided((channels, 32, 32), bottleneck)
    sample = torch.rand(4, channels, 32, 32) * 9
    output = backbone.encoder(sample)
    assert output.shape == (4, code) and backbone.outputs == code
    restored = backbone.decoder(output)
    assert restored.shape == sample.shape and restored.abs().max() <= 1
    weights = sum(p.numel() for p in (*backbone.encoder.parameters(), *backbone.decoder.parameters()))
    assert bottleneck or weights == {1: 176_507, 3: 2_812_393}[channels]


def test_the_strided_autoencoder_refuses_other_images():
    for shape in ((64,), (1, 28, 28), (2, 32, 32)):
        with pytest.raises(ValueError, match=r"strided.*size of 32"):
            networks.strided(shape, None)


def test_mlp_without_a_norm():
    backbone = networks.mlp((10,), (8,), 4, norm="none")
    assert not any("BatchNorm" in type(m).__name__ for m in (*backbone.encoder.modules(), *backbone.decoder.modules()))


@pytest.mark.parametrize("shape", [(10,), (1, 3, 9)], ids=str)
def test_lenet_refuses_what_is_no_image(shape):
    with pytest.raises(ValueError, match="4x4"):
        networks.lenet(shape)


@pytest.mark.parametrize("shape", [(10,), (1, 8, 8)], ids=str)
def test_with_a_norm_by_sample_no_sample_depends_on_the_others(shape):
    encoder, sample = networks.auto(shape, norm="layer").encoder, torch.rand(6, *shape)
    torch.testing.assert_close(encoder(sample)[:2], encoder(sample[:2]))
    assert not [m for m in encoder.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
