"""Sana Sprint for t2ialign."""
