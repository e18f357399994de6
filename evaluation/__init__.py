"""What a trained model does on the test images. Training imports nothing from here.

trained            a model rebuilt from its checkpoint, and its answers
metrics            accuracy, calibration, confusions: the numbers of evaluation.json
corruptions        the test images with noise, blur, brightness, JPEG, shift
mistakes           which images to show
attention          what a Vision Transformer looks at
evaluation_plots   one function a figure: how to draw what metrics and corruptions found
attention_plots    the same for what attention found
figures            all figures by name: how to read each, and which can be drawn
classify           pictures of the user's own
report             report.html, with the figures inside
console            what the evaluator prints
"""
