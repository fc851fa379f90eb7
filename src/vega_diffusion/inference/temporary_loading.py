"""Stand-in until models/checkpoint.py is there."""
from pathlib import Path
import hashlib, json, struct
import math
def load_component(folder, component, dtype):
    import torch
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTextModelWithProjection
    cls={"unet":UNet2DConditionModel,"vae":AutoencoderKL,"text_encoder":CLIPTextModel,"text_encoder_2":CLIPTextModelWithProjection}[component]
    return cls.from_pretrained(folder, subfolder=component, torch_dtype=dtype)
def load_tokenizer(folder, name):
    from transformers import CLIPTokenizer
    return CLIPTokenizer.from_pretrained(folder/name)
def model_digest(folder):
    h=hashlib.sha256()
    for f in sorted(folder.rglob("*")):
        if f.is_file(): h.update(f.read_bytes())
    return h.hexdigest()
def resolve_model(name): return Path(name)
def stored_parameters(folder, component):
    from vega_diffusion.models.layout import find_weights
    n=0
    for p in find_weights(folder, component).paths:
        with open(p,"rb") as f:
            k=struct.unpack("<Q",f.read(8))[0]
            n+=sum(math.prod(v["shape"]) for key,v in json.loads(f.read(k)).items() if key!="__metadata__")
    return n
