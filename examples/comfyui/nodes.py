"""Three nodes: a text to pictures, pictures to pictures, a text to speech.

In ComfyUI an IMAGE is a float tensor (batch, height, width, channels) from 0 to 1, a MASK one (batch, height, width) with 1 where
to paint anew, and AUDIO is `{"waveform": (batch, channels, samples), "sample_rate": int}`.
"""

import base64
import io
import os
import wave

import numpy as np
import torch
from openai import OpenAI
from PIL import Image

SERVER = {
    "url": ("STRING", {"default": "http://127.0.0.1:8000/v1"}),
    "model": ("STRING", {"default": "omni-tiny"}),
}
SEED = ("INT", {"default": 0, "min": 0, "max": 2**63 - 1, "control_after_generate": True})
STEPS = ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": "0: the model's own"})
SIDE = ("INT", {"default": 0, "min": 0, "max": 4096, "tooltip": "0: the model's own"})


class TextToImage:
    """Pictures of a prompt."""

    CATEGORY, FUNCTION, RETURN_TYPES = "Omnibus", "paint", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        prompt = ("STRING", {"multiline": True, "dynamicPrompts": True})
        count = ("INT", {"default": 1, "min": 1, "max": 16})
        required = {**SERVER, "prompt": prompt, "width": SIDE, "height": SIDE, "batch_size": count, "seed": SEED}
        return {"required": required, "optional": {"negative_prompt": ("STRING", {"multiline": True}), "steps": STEPS}}

    def paint(self, url, model, prompt, width, height, batch_size, seed, negative_prompt="", steps=0):
        made = client(url).images.generate(
            model=model, prompt=prompt, n=batch_size, size=size(width, height),
            extra_body=given(seed=seed, negative_prompt=negative_prompt, num_inference_steps=steps),
        )  # fmt: skip
        return (images(made),)


class ImageEdit:
    """Pictures made of pictures by a prompt, where the mask is 1, or everywhere."""

    CATEGORY, FUNCTION, RETURN_TYPES = "Omnibus", "edit", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        strength = ("FLOAT", {"default": -1.0, "min": -1.0, "max": 1.0, "step": 0.05, "tooltip": "-1: the model's own"})
        required = {**SERVER, "image": ("IMAGE",), "prompt": ("STRING", {"multiline": True}), "seed": SEED}
        return {"required": required, "optional": {"mask": ("MASK",), "strength": strength, "steps": STEPS}}

    def edit(self, url, model, image, prompt, seed, mask=None, strength=-1.0, steps=0):
        pictures = [("image.png", png(one), "image/png") for one in image]
        asked = {"model": model, "prompt": prompt, "size": size(image.shape[2], image.shape[1])}
        if mask is not None:
            asked["mask"] = ("mask.png", png(mask[0]), "image/png")
        more = given(seed=seed, strength=None if strength < 0 else strength, num_inference_steps=steps)
        return (images(client(url).images.edit(image=pictures, extra_body=more, **asked)),)


class Speech:
    """A text, spoken."""

    CATEGORY, FUNCTION, RETURN_TYPES = "Omnibus", "speak", ("AUDIO",)

    @classmethod
    def INPUT_TYPES(cls):
        voice = ("STRING", {"default": "default"})
        return {"required": {**SERVER, "text": ("STRING", {"multiline": True}), "voice": voice}}

    def speak(self, url, model, text, voice):
        spoken = client(url).audio.speech.create(
            model=model, input=text, voice=voice, response_format="wav", extra_body={"stream": False}
        )
        with wave.open(io.BytesIO(spoken.content)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
            waveform = torch.from_numpy(samples.T.astype(np.float32) / 32768)[None]
            return ({"waveform": waveform, "sample_rate": file.getframerate()},)


def client(url):
    """The key is not a field of a node: workflows are saved and passed on."""
    return OpenAI(base_url=url, api_key=os.environ.get("OMNIBUS_API_KEY", "any"))


def given(**fields):
    """Those that say something."""
    return {name: value for name, value in fields.items() if value not in (None, "") and (name == "seed" or value != 0)}


def size(width, height):
    return f"{width}x{height}" if width and height else "auto"


def png(picture):
    data = io.BytesIO()
    Image.fromarray((picture.cpu().numpy() * 255).round().astype(np.uint8)).save(data, format="PNG")
    return data.getvalue()


def images(made):
    opened = (Image.open(io.BytesIO(base64.b64decode(one.b64_json))).convert("RGB") for one in made.data)
    return torch.from_numpy(np.stack([np.asarray(one, np.float32) / 255 for one in opened]))


NODE_CLASS_MAPPINGS = {"OmnibusTextToImage": TextToImage, "OmnibusImageEdit": ImageEdit, "OmnibusSpeech": Speech}
NODE_DISPLAY_NAME_MAPPINGS = {
    "OmnibusTextToImage": "Text to Image (Omnibus)",
    "OmnibusImageEdit": "Image Edit (Omnibus)",
    "OmnibusSpeech": "Speech (Omnibus)",
}
