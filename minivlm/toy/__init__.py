"""The shipped model: a tiny LLaVA, the drawn world that it knows, and the recipe that trained it.

    scenes.py      the world: backgrounds, objects, signs, and which patches show them
    questions.py   eight families of questions with exact answers and evidence, and the words of the world
    benchmark.py   sets of questions, in memory and as a folder of files
    packing.py     many questions about one picture in one row
    student.py     the network's sizes, its targets, its forward pass over packed questions
    optimiser.py   Muon and Adam
    train.py       the two stages, the losses, checkpoints: read this for the recipe
    folder.py      the trained network as a checkpoint folder
    samples/       four pictures and their questions, and the picture of the front page
    model/         the checkpoint; atp.safetensors, the modules of ATP, trained on it; methods.json, options of methods
                   for eight layers; results.json, how the weights were trained, and what they score
"""
