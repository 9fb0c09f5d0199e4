"""How written text is read: one row for each case, checked by ear."""

import random

import pytest

from speech.normalise import LANGUAGES, normalise
from utils.cli import UserError

PORTUGUESE = """
Tenho 2 casas. | Tenho duas casas.
Vi 21 meninas e 22 meninos. | Vi vinte e uma meninas e vinte e dois meninos.
São 200 mulheres e 300 homens. | São duzentas mulheres e trezentos homens.
Faltam 1.234 páginas. | Faltam mil duzentas e trinta e quatro páginas.
mais de 1.234.567 pessoas | mais de um milhão duzentas e trinta e quatro mil quinhentas e sessenta e sete pessoas
2 mil mulheres | duas mil mulheres
2 milhões de mulheres | dois milhões de mulheres
São 1.000 alunos. | São mil alunos.
Eram 1.100 e hoje são 1.150. | Eram mil e cem e hoje são mil cento e cinquenta.
A lei tem 100 artigos; outra, 101. | A lei tem cem artigos; outra, cento e um.
Em 1999 e em 2024. | Em mil novecentos e noventa e nove e em dois mil e vinte e quatro.
O ano de 1900. | O ano de mil e novecentos.
Custa 3,5 vezes mais. | Custa três vírgula cinco vezes mais.
A nota foi 9,75. | A nota foi nove vírgula setenta e cinco.
O valor é 0,05. | O valor é zero vírgula zero cinco.
O pi vale 3,1416. | O pi vale três vírgula um quatro um seis.
Faz -5 graus lá fora. | Faz menos cinco graus lá fora.
A conta deu −12,5. | A conta deu menos doze vírgula cinco.
O agente 007 chegou. | O agente zero zero sete chegou.
5 + 3 = 8 | cinco mais três igual a oito
10 - 4 = 6 | dez menos quatro igual a seis
3 x 4 = 12 | três vezes quatro igual a doze
12,5% ao ano | doze vírgula cinco por cento ao ano
de 10-20% dos casos | de dez a vinte por cento dos casos
R$ 1.234,50 | mil duzentos e trinta e quatro reais e cinquenta centavos
R$ 1,00 | um real
R$ 0,50 | cinquenta centavos
R$ 2 milhões | dois milhões de reais
R$ 1.000.000,00 | um milhão de reais
R$ 3,2 bi | três vírgula dois bilhões de reais
R$ 15 mil | quinze mil reais
-R$ 20,00 | menos vinte reais
R$ 10-20 | dez a vinte reais
US$ 21 | vinte e um dólares
€ 200 | duzentos euros
£ 2 | duas libras
50 € | cinquenta euros
R$ 5,90/kg | cinco reais e noventa centavos por quilo
No dia 12/03/2024 choveu. | No dia doze de março de dois mil e vinte e quatro choveu.
01/05/2020 | primeiro de maio de dois mil e vinte
2024-03-12 | doze de março de dois mil e vinte e quatro
2024-03-12T14:30 | doze de março de dois mil e vinte e quatro, catorze e trinta
Até 25/12 tudo se resolve. | Até vinte e cinco de dezembro tudo se resolve.
dia 7/9 | dia sete de setembro
em 03/2024 | em março de dois mil e vinte e quatro
1 de maio | primeiro de maio
3 de jan. de 2021 | três de janeiro de dois mil e vinte e um
das 10-12 de maio | das dez a doze de maio
às 14h30 | às catorze e trinta
às 14:30 | às catorze e trinta
às 8h | às oito horas
a 1h da manhã | a uma hora da manhã
às 21:05 | às vinte e uma e cinco
das 8h às 10h | das oito horas às dez horas
2h30min de viagem | duas horas e trinta minutos de viagem
10:15:30 | dez horas, quinze minutos e trinta segundos
0h30 | zero hora e trinta minutos
às 2 da tarde | às duas da tarde
48h depois | quarenta e oito horas depois
O Sr. Silva e a Sra. Souza. | O senhor Silva e a senhora Souza.
A Dra. Ana e o Dr. Luís. | A doutora Ana e o doutor Luís.
O Prof. Carlos, a Profa. Rita. | O professor Carlos, a professora Rita.
Moro na Av. Brasil, nº 500, apto. 21. | Moro na avenida Brasil, número quinhentos, apartamento vinte e um.
R. Augusta, n.º 3 | Rua Augusta, número três
balas, doces etc. | balas, doces etcétera.
balas, doces etc. Depois saiu. | balas, doces etcétera. Depois saiu.
p. ex. a soja | por exemplo a soja
ver pág. 12 e p. 13 | ver página doze e página treze
a.C. e d.C. | antes de Cristo e depois de Cristo.
Silva & Cia. Ltda. | Silva e companhia limitada.
a 5 km daqui | a cinco quilômetros daqui
1 km | um quilômetro
1,5 km | um vírgula cinco quilômetro
80 km/h | oitenta quilômetros por hora
21 t de soja | vinte e uma toneladas de soja
2 g de sal | dois gramas de sal
25 °C | vinte e cinco graus Celsius
30ºC | trinta graus Celsius
45° | quarenta e cinco graus
60 m² | sessenta metros quadrados
100 m2 | cem metros quadrados
5 m³ | cinco metros cúbicos
10³² | dez elevado a trinta e dois
2¹⁰ é 1.024, e 10⁻³ é pouco | dois elevado a dez é mil e vinte e quatro, e dez elevado a menos três é pouco
6.022e23 e 1.5e3 | seis vírgula zero vinte e dois vezes dez elevado a vinte e três e um vírgula cinco vezes dez ao cubo
Vem de¹² mil (aqui)¹⁰ | Vem de mil (aqui)
1e10 e 2,5e-3 | um vezes dez elevado a dez e dois vírgula cinco vezes dez elevado a menos três
3 × 10⁸ m/s | três vezes dez elevado a oito metros por segundo
6,02x10^23 moléculas | seis vírgula zero dois vezes dez elevado a vinte e três moléculas
10^2, 10³ e x⁴ | dez ao quadrado, dez ao cubo e x elevado a quatro
A casa¹ e o rio¹² | A casa e o rio
9,8 m/s² | nove vírgula oito metros por segundo ao quadrado
25 hab/km² | vinte e cinco habitantes por quilômetro quadrado
300 kWh | trezentos quilowatts-hora
8 GB | oito gigabytes
10-15 min | dez a quinze minutos
1º lugar, 2ª casa, 3os dias | primeiro lugar, segunda casa, terceiros dias
a 21ª vez | a vigésima primeira vez
o 100º gol | o centésimo gol
o 345º dia | o trecentésimo quadragésimo quinto dia
a 2ª-feira | a segunda-feira
o art. 5º, § 2º | o artigo quinto, parágrafo segundo
século XIX | século dezenove
séculos XV e XVI | séculos quinze e dezesseis
o séc. V | o século quinto
Dom Pedro II | Dom Pedro segundo
D. Pedro I e D. Maria I | Dom Pedro primeiro e Dona Maria primeira
Luís XIV, João XXIII | Luís catorze, João vinte e três
Papa João Paulo II | Papa João Paulo segundo
Elizabeth II | Elizabeth segunda
a II Guerra Mundial | a segunda Guerra Mundial
o XX Congresso | o vigésimo Congresso
capítulo IV, volume III | capítulo quatro, volume três
Rocky II | Rocky dois
ligue (11) 98765-4321 | ligue um um, nove oito sete meia cinco, quatro três dois um
tel.: 3456-7890 | telefone: três quatro cinco meia, sete oito nove zero
+55 11 98765-4321 | mais cinco cinco, um um, nove oito sete meia cinco, quatro três dois um
0800 123 4567 | zero oito zero zero, um dois três, quatro cinco meia sete
CPF 123.456.789-09 | cê pê efe um dois três, quatro cinco seis, sete oito nove, zero nove
CEP 01310-100 | CEP zero um três um zero, um zero zero
www.exemplo.com.br | dáblio dáblio dáblio ponto exemplo ponto com ponto bê erre
https://exemplo.org/pagina-1 | exemplo ponto org barra pagina hífen um
joao.silva@exemplo.com | joao ponto silva arroba exemplo ponto com
O IBGE, o INSS e a ONU. | O i bê gê é, o i ene esse esse e a ONU.
A USP e a UFRJ. | A USP e a u efe erre jota.
MP3, 5G e COVID-19 | eme pê três, cinco gê e COVID dezenove
a vitamina C | a vitamina cê
1/2 xícara de leite | meia xícara de leite
2 1/2 copos | dois e meio copos
3/4 do bolo | três quartos do bolo
2/3 | dois terços
pão & vinho | pão e vinho
e/ou | e ou
c/ gelo e s/ açúcar | com gelo e sem açúcar
o placar de 2 x 1 | o placar de dois a um
parcelado em 10x | parcelado em dez vezes
versão 1.2.3 | versão um ponto dois ponto três
nota 9.5 | nota nove ponto cinco
1, 2 e 3 | um, dois e três
1,2,3 | um, dois, três
#natal @maria | cerquilha natal arroba maria
123456789012345678 | um dois três quatro cinco seis sete oito nove zero um dois três quatro cinco seis sete oito
2 grandes casas | duas grandes casas
É A ÚLTIMA CHANCE DE COMPRAR | É A ÚLTIMA CHANCE DE COMPRAR
"""
ENGLISH = """
I have 2 houses. | I have two houses.
It has 1,234 pages. | It has one thousand two hundred and thirty-four pages.
over 2,000,003 people | over two million and three people
There were 101 dogs. | There were one hundred and one dogs.
1,005 ways | one thousand and five ways
2 million women | two million women
In 1999 and in 2024. | In nineteen ninety-nine and in twenty twenty-four.
the year 1900 | the year nineteen hundred
the year 1905 | the year nineteen oh five
It was 2000, then 2005. | It was two thousand, then two thousand and five.
the 1990s | the nineteen nineties
the '80s | the eighties
in the 60s | in the sixties
1500 people | fifteen hundred people
The value is 0.05. | The value is zero point zero five.
Pi is 3.1416. | Pi is three point one four one six.
It was -5 degrees. | It was minus five degrees.
a change of −12.5 | a change of minus twelve point five
Agent 007 came. | Agent zero zero seven came.
5 + 3 = 8 | five plus three equals eight
10 - 4 = 6 | ten minus four equals six
3 x 4 feet | three by four feet
12.5% a year | twelve point five percent a year
10-20% of cases | ten to twenty percent of cases
from 2010-2015 | from twenty ten to twenty fifteen
pages 10–12 | pages ten to twelve
$1,234.50 | one thousand two hundred and thirty-four dollars and fifty cents
$1.00 | one dollar
$0.50 | fifty cents
$0.01 | one cent
$2 million | two million dollars
$1.5bn | one point five billion dollars
$3M | three million dollars
-$20 | minus twenty dollars
$10-20 | ten to twenty dollars
£2 | two pounds
£5.20 | five pounds and twenty pence
£0.01 | one penny
€200 | two hundred euros
50 € | fifty euros
US$21 | twenty-one dollars
R$ 10 | ten reais
$5/kg | five dollars per kilogram
on 12/03/2024 | on December third, twenty twenty-four
on 25/12/2023 | on December twenty-fifth, twenty twenty-three
2024-03-12 | March twelfth, twenty twenty-four
2024-03-12T14:30 | March twelfth, twenty twenty-four, fourteen thirty
03/12 | March twelfth
March 5, 2024 | March fifth, twenty twenty-four
March 5th | March fifth
5 March 2024 | the fifth of March, twenty twenty-four
the 4th of July | the fourth of July
Jan. 3, 1999 | January third, nineteen ninety-nine
at 2 pm | at two pee em
at 2:30 p.m. | at two thirty pee em.
At 9:05 a.m. he left. | At nine oh five ay em he left.
at 14:30 | at fourteen thirty
at 9:00 | at nine o'clock
at 14:00 | at fourteen hundred
at 7:05 | at seven oh five
10:15:30 | ten fifteen and thirty seconds
Mr. Smith and Mrs. May | Mister Smith and Missus May
Dr. Jones met Prof. Lee. | Doctor Jones met Professor Lee.
St. John lives on Main St. | Saint John lives on Main Street.
5th Ave. and Baker St. today | fifth Avenue and Baker Street today
No. 5 | number five
No. I will not. | No. I will not.
apples, pears, etc. | apples, pears, et cetera.
apples, etc. Then he left. | apples, et cetera. Then he left.
e.g. a dog, i.e. a pet | for example a dog, that is a pet
see p. 12 and pp. 13-15 | see page twelve and pages thirteen to fifteen
Smith & Co. Ltd. | Smith and Company Limited.
Martin Luther King Jr. spoke. | Martin Luther King Junior spoke.
5 km away | five kilometers away
1 km | one kilometer
1.5 km | one point five kilometers
80 km/h | eighty kilometers per hour
60 mph | sixty miles per hour
a 5-km walk | a five kilometer walk
25 °C | twenty-five degrees Celsius
77°F | seventy-seven degrees Fahrenheit
45° | forty-five degrees
60 m² | sixty square meters
9.8 m/s² | nine point eight meters per second squared
6 ft and 180 lbs | six feet and one hundred and eighty pounds
8 GB | eight gigabytes
10-15 min | ten to fifteen minutes
1st, 2nd, 3rd and 4th | first, second, third and fourth
the 21st century | the twenty-first century
the 100th goal | the one hundredth goal
the 1,000th visitor | the one thousandth visitor
Henry VIII | Henry the Eighth
Queen Elizabeth II | Queen Elizabeth the Second
Pope John Paul II | Pope John Paul the Second
Louis XIV | Louis the Fourteenth
World War II | World War two
Chapter IV | Chapter four
Rocky III | Rocky three
call (212) 555-0199 | call two one two, five five five, zero one nine nine
+1 212-555-0199 | plus one, two one two, five five five, zero one nine nine
555-0199 | five five five, zero one nine nine
10³² and 2^10 | ten to the power of thirty-two and two to the power of ten
1e10 atoms, 1.5e-3 | one times ten to the power of ten atoms, one point five times ten to the power of minus three
3 × 10⁸ m/s | three times ten to the power of eight meters per second
as was said¹² of x^2 | as was said of x squared
www.example.com | double-you double-you double-you dot example dot com
https://example.org/page-1 | example dot org slash page dash one
joe.doe@example.com | joe dot doe at example dot com
The FBI, the CIA and NASA. | The ef bee eye, the see eye ay and NASA.
the UK and the USA | the you kay and the you ess ay
the U.S. economy | the you ess economy
MP3, 5G and COVID-19 | em pee three, five gee and COVID nineteen
vitamin C | vitamin see
1/2 cup of milk | one half cup of milk
2 1/2 cups | two and a half cups
3/4 of it | three quarters of it
2/3 | two thirds
bread & wine | bread and wine
and/or | and or
won 10x | won ten times
version 1.2.3 | version one point two point three
1, 2 and 3 | one, two and three
1,2,3 | one, two, three
#1 of 3 | number one of three
#music @mary | hash music at mary
1234567890123456 | one two three four five six seven eight nine zero one two three four five six
BUY NOW AND SAVE MONEY | BUY NOW AND SAVE MONEY
a Ph.D. student | a pee aitch dee student
"""


def rows(table: str) -> list[list[str]]:
    return [line.split(" | ") for line in table.strip().splitlines()]


CASES = [("pt-br", *row) for row in rows(PORTUGUESE)] + [("en", *row) for row in rows(ENGLISH)]


@pytest.mark.parametrize(("language", "written", "spoken"), CASES)
def test_a_text_is_read_as_a_speaker_reads_it(language, written, spoken):
    assert normalise(written, language) == spoken


def test_each_language_has_its_cases():
    assert min(len(rows(PORTUGUESE)), len(rows(ENGLISH))) >= 75


def make_texts(count: int) -> list[str]:
    """Texts that nobody writes: parts of the cases and odd characters in any order."""
    chooser = random.Random(0)
    parts = [part for _, written, _ in CASES for part in written.split()]
    odd = list("0123456789.,:/-%$€ºª°²½⅓①٣५፩ⅣR$ABIVX\n\u200b\u0301abcé'’—+")
    odd += ["R$", "1.", ",5", "\ud7a3", "𝟘", "½", "10⁵"]
    return [
        "".join(chooser.choice(parts if chooser.random() < 0.3 else odd) + " " * chooser.randrange(2) for _ in range(9))
        for _ in range(count)
    ]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_digit_is_left_and_a_second_reading_changes_nothing(language):
    for text in [*make_texts(1500), *(written for _, written, _ in CASES)]:
        once = normalise(text, language)
        assert not any(one.isdigit() for one in once), (text, once)
        assert normalise(once, language) == once, text


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_empty_text_stays_empty(language):
    assert normalise(" \n\u200b", language) == ""


def test_a_language_without_rules_is_refused():
    with pytest.raises(UserError, match="--language fr: expected one of pt-br, en"):
        normalise("un", "fr")
