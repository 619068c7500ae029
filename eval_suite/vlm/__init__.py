"""LLaVA-style vision-language models on frozen backbones: training, answering, and handing them to lmms-eval."""
